"""Where errors become one clear message: both command lines run through `run`.

What the project reads and writes through `Storage` and `Files` has typed errors
already. Here is what libraries and the interpreter raise besides: an OSError that
files, disks or networks cause is the user's to mend and becomes a message; any other (a
closed descriptor, an argument that makes no sense) is a bug, and keeps its traceback.
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
from actstore.errors import ActstoreError
from actstore.machine.stop_signals import Stopped, signals
from actstore.machine.torch_threads import wait_briefly

DEBUG = "ACTSTORE_DEBUG"
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
    """Run a typer app. A user's mistake gives a message and exit code 1, no traceback
    (unless ACTSTORE_DEBUG); SIGINT and SIGTERM give 130 and 143. A closed pipe gives 1
    and no message.
    """
    wait_briefly()
    survive_any_encoding()
    try:
        _run(app)
    finally:
        failed = flushed()
        if failed is not None:
            _tell_of_output(failed)
            sys.exit(1)


def _run(app: Callable[[], Any]) -> None:
    try:
        with signals():
            app()
    except ActstoreError as error:
        if os.environ.get(DEBUG):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except ValueError as error:
        # pydantic's, loaded only if it was used
        if os.environ.get(DEBUG) or type(error).__name__ != "ValidationError":
            raise
        from actstore.validation import sentences

        typer.echo(f"error: {sentences(error)}", err=True)  # type: ignore[arg-type]
        sys.exit(1)
    except OSError as error:
        _end_by(error)
    except Stopped as stop:
        if not stop.told:
            typer.echo(str(stop), err=True)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


def _end_by(error: OSError) -> None:
    """Exit code 1, with a message unless a reader left; an error of the program's own
    is raised again.
    """
    if not reader_left(error):
        if os.environ.get(DEBUG) or not is_users(error):
            raise error
        typer.echo(f"error: {told(error)}", err=True)
    sys.exit(1)


def _tell_of_output(error: OSError) -> None:
    """That standard output cannot be written, unless its reader left; on standard
    error, if that takes it.
    """
    if not reader_left(error):
        with contextlib.suppress(OSError):
            typer.echo(f"error: the output cannot be written: {told(error)}", err=True)


def is_users(error: OSError) -> bool:
    """Tell whether an error comes from files, a disk or a network, and not from the
    program.
    """
    return error.errno in _ADVICE or isinstance(
        error, (ConnectionError, TimeoutError, socket.gaierror)
    )


def told(error: OSError) -> str:
    """An OSError as a sentence: where, what, what to do."""
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
