"""Makes a process of an engine like the one that the user started.

The same version of the package, the same folder, the same values that hold while a
command runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from actstore.console.code_version import code_version
from actstore.errors import EngineError
from actstore.machine import command_values
from schemas.engines import WorkerPlace

VARIABLES = (
    command_values.STORAGE_OPTIONS,
    command_values.CACHE,
    command_values.CACHE_SIZE,
    command_values.CATALOG,
)


def place_like_here(device: str, threads: int | None) -> WorkerPlace:
    """Return where and how workers work: as this process does.

    Args:
        device: Where they compute, `cpu` or `cuda`.
        threads: How many threads of torch's each has; None: as the engine says.
    """
    variables = {name: os.environ.get(name) for name in VARIABLES}
    return WorkerPlace.model_validate(
        {
            "version": code_version(),
            "folder": str(Path.cwd()),
            "variables": {key: value for key, value in variables.items() if value},
            "device": device,
            "threads": threads,
        }
    )


def node() -> str:
    """Return the name of this machine, for messages."""
    return socket.gethostname()


@contextlib.contextmanager
def in_place(place: WorkerPlace) -> Iterator[None]:
    """Work in a place, inside the `with`.

    Raises:
        EngineError: Another version of the package is installed here.
    """
    if place.version != code_version():
        raise EngineError(
            f"{node()} has actstore {code_version()}, and the command was started with"
            f" {place.version}; install the same on all machines"
        )
    # Relative paths of corpora, models and stores mean what the user meant, where the
    # folder is there. Where it is not, they are not found, which is said.
    with contextlib.suppress(OSError):
        os.chdir(place.folder)
    with command_values.during(place.variables):
        if place.threads is not None:
            import torch

            torch.set_num_threads(place.threads)
        yield
