"""A Ray of this machine's own, for as long as one command runs.

It listens on 127.0.0.1 only, has a token that nobody else knows, no dashboard, and a
folder that only this user can read, which goes with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actstore.errors import ClusterLostError, EngineError, first_line
from actstore.machine import command_values

ADDRESS = "127.0.0.1"
# What goes from the driver to workers and back is a few kilobytes.
OBJECT_STORE_BYTES = 80 << 20
# A path of a socket takes at most 107 characters, of which Ray adds some 60.
LONGEST_FOLDER = 38
PREFIX = "ray-"
# A file in the folder, locked as long as the process lives that made it.
LOCK = "actstore.lock"
REMOVE_S = 5.0
# Ray reads its settings once, when it is first imported: all that this process starts
# one after the other have the same token.
_settings: dict[str, str] = {}


@contextlib.contextmanager
def local_ray(n_cpus: int) -> Iterator[Any]:
    """Start Ray on this machine, give its module, and end it.

    Args:
        n_cpus: How many cores it may give away.

    Raises:
        EngineError: Ray was imported before, and not with a token.
        ClusterLostError: It does not start.
    """
    if "ray" in sys.modules and not _settings:
        raise EngineError(
            "Ray was imported by this process already, with settings of its own; call"
            " `ray.init` before, and its cluster is used, or do not import it"
        )
    if not _settings:
        _settings.update(_new_settings())
    with (
        command_values.during(_settings),
        _folder() as folder,
        contextlib.ExitStack() as at_end,
    ):
        import ray

        at_end.enter_context(silent(ray))
        at_end.callback(ray.shutdown)
        _start(ray, n_cpus, f"{folder}/r")
        yield ray


def _start(ray: Any, n_cpus: int, folder: str) -> None:
    """Start Ray; its files go to a folder."""
    try:
        ray.init(
            # Not one that RAY_ADDRESS names.
            address="local",
            num_cpus=n_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address=ADDRESS,
            # Ray lets everybody into it; the folder above lets nobody through.
            _temp_dir=folder,
        )
    # Ray raises what it likes, down to a bare Exception.
    except Exception as error:
        raise ClusterLostError(
            f"Ray could not be started on this machine: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def silent(ray: Any) -> Iterator[None]:
    """Keep Ray from printing what happens to its nodes, inside the `with`.

    It would print it on standard output, where JSON may be. A lost worker is told of by
    who has asked it.
    """
    worker = ray._private.worker
    # An attribute of Ray's own; without it Ray prints, and works as well.
    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


def _new_settings() -> dict[str, str]:
    """Return environment variables that Ray and its processes read."""
    return {
        "RAY_AUTH_MODE": "token",
        # In the environment of this process and its children, which only this user can
        # read: not in a file, an argument or a log.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else Ray takes another address of this machine in the place of 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Workers without a GPU see those that there are, as they would without Ray.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a new folder that only this user can read, and remove it afterwards.

    Those of processes that were killed are removed as well.
    """
    place = tempfile.gettempdir()
    if len(f"{place}/{PREFIX}12345678") > LONGEST_FOLDER:
        place = "/tmp"  # noqa: S108 (the folder there is ours alone)
    _remove_left(Path(place))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    # It has its name once it is locked: nobody sees it otherwise.
    descriptor = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (folder / "new").rename(folder / LOCK)
        yield folder
    finally:
        _remove(folder)
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder, into which processes that are about to end may still write."""
    until = time.monotonic() + REMOVE_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > until:
            return  # the next command removes it
        time.sleep(0.1)


def _remove_left(place: Path) -> None:
    """Remove folders whose makers were killed."""
    for lock in place.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            if lock.parent.lstat().st_uid == os.getuid() and not _is_locked(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
