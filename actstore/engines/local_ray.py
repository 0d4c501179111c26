"""A Ray of this machine's own, for as long as one command runs.

It listens on 127.0.0.1 only, has a token that nobody else knows, no dashboard, and a
folder that only this user can read, which goes with it.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actstore.errors import EngineError
from actstore.machine import command_values

ADDRESS = "127.0.0.1"
# What goes from the driver to workers and back is a few kilobytes.
OBJECT_STORE_BYTES = 80 << 20
# A path of a socket takes at most 107 characters, of which Ray adds some 60.
LONGEST_FOLDER = 38
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
    """
    if "ray" in sys.modules and not _settings:
        raise EngineError(
            "Ray was imported by this process already, with settings of its own; call"
            " `ray.init` before, and its cluster is used, or do not import it"
        )
    if not _settings:
        _settings.update(_new_settings())
    folder = _folder()
    with command_values.during(_settings), contextlib.ExitStack() as at_end:
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        import ray

        at_end.enter_context(silent(ray))
        at_end.callback(ray.shutdown)
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
            _temp_dir=f"{folder}/r",
        )
        yield ray


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


def _folder() -> str:
    """Return a new folder that only this user can read."""
    folder = tempfile.mkdtemp(prefix="ray-")
    if len(folder) <= LONGEST_FOLDER:
        return folder
    Path(folder).rmdir()
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp")
