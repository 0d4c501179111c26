"""Turns errors into one clear message; both command lines run inside `run`.

What the project reads and writes through `Storage` and `Files` raises its own errors
already. This handles what libraries and the interpreter raise besides. An OSError that
files, disks or networks cause is the user's to mend, and becomes a message; any other
(a closed descriptor, an argument that makes no sense) is a bug, and keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import typer

from actstore.console.cli_output import flushed, reader_left, survive_any_encoding
from actstore.console.printable import printable
from actstore.console.warning_lines import warning_lines
from actstore.errors import ActstoreError
from actstore.machine.stop_signals import Stopped, signals
from actstore.machine.torch_threads import wait_briefly

DEBUG = "ACTSTORE_DEBUG"  # an environment variable: show tracebacks
_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may do that there",
    errno.EROFS: "the file system is read-only, choose another place",
    errno.EISDIR: "a folder is where a file is wanted, check the path",
    errno.ENOTDIR: "a file is where a folder is wanted, check the path",
    errno.EEXIST: "something of that name is there already, choose another",
    errno.ENOTEMPTY: "the folder is not empty, choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "symbolic links go in a circle there",
    errno.ENOSPC: "the disk is full, free some space",
    errno.EDQUOT: "the quota is used up, free some space",
    errno.EFBIG: "the file system or a limit forbids files of that size",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files",
    errno.EIO: "the disk cannot be read or written, look at the system's log",
    errno.ESTALE: "the network file system lost the file, mount it again",
    errno.ENXIO: "there is no such device",
    errno.ENODEV: "there is no such device",
    errno.EBUSY: "something else uses it",
}


def run(app: Callable[[], Any]) -> None:
    """Run a typer app, and end the process with its exit code.

    A user's mistake gives a message, no traceback (unless ACTSTORE_DEBUG is set) and
    exit code 1; a closed pipe gives 1 and no message. SIGINT and SIGTERM give 130 and
    143.
    """
    # Before a command runs, and loads torch.
    wait_briefly()
    survive_any_encoding()
    try:
        _run(app)
    finally:
        # A result that nobody could read is no success, whatever the command did.
        failed = flushed()
        if failed is not None:
            _tell_output_failed(failed)
            sys.exit(1)


def _run(app: Callable[[], Any]) -> None:
    try:
        with signals(), warning_lines():
            app()
    except ActstoreError as error:
        if os.environ.get(DEBUG):
            raise
        typer.echo(printable(f"error: {error}"), err=True)
        sys.exit(1)
    except ValueError as error:
        # pydantic's, loaded only if it was used
        if os.environ.get(DEBUG) or type(error).__name__ != "ValidationError":
            raise
        from actstore.validation import sentences

        message = sentences(error)  # type: ignore[arg-type]
        typer.echo(printable(f"error: {message}"), err=True)
        sys.exit(1)
    except OSError as error:
        _end_with(error)
    except Stopped as stop:
        if not stop.told:
            typer.echo(str(stop), err=True)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


def _end_with(error: OSError) -> None:
    """Exit with code 1, and a message unless the output's reader left.

    An error of the program's own is raised again.
    """
    if reader_left(error):
        sys.exit(1)
    if os.environ.get(DEBUG) or not is_users(error):
        raise error
    typer.echo(printable(f"error: {told(error)}"), err=True)
    sys.exit(1)


def _tell_output_failed(error: OSError) -> None:
    """Say that the output cannot be written, unless its reader left."""
    if reader_left(error):
        return
    # Standard error may be what cannot be written.
    with contextlib.suppress(OSError):
        typer.echo(f"error: the output cannot be written: {told(error)}", err=True)


def is_users(error: OSError) -> bool:
    """Return whether an error comes from a file, disk or network, not our program."""
    is_of_network = isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))
    return is_of_network or error.errno in _ADVICE


def told(error: OSError) -> str:
    """Return an OSError as a sentence: where, what, what to do."""
    names = [
        os.fsdecode(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, (str, bytes))
    ]
    where = f"{' -> '.join(names)}: " if names else ""
    advice = _ADVICE.get(error.errno or 0, "check the network and the address")
    return (
        f"{where}{error.strerror or error}; {advice} ({DEBUG}=1 shows where it"
        " happened)"
    )
