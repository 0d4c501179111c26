"""Starts a command of the command line in one process, or in those of torchrun.

Importing this module loads typer only. Torch would take seconds, and `--help` need not
wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from trainer.distributed.world_of_one import ONE_WORLD, OneWorld

if TYPE_CHECKING:
    from trainer.distributed.processes import World


@contextmanager
def under_torchrun(device: str, shard_dictionary: bool) -> Iterator[World | OneWorld]:
    """Join the processes that torchrun started, for the length of a `with` block.

    Without torchrun the block gets a world of this process alone. If an error ends
    several processes, one of them prints it.

    Args:
        device: The device that was asked for, such as `cpu` or `cuda`.
        shard_dictionary: Whether the dictionary is to be split over the processes.

    Raises:
        PeerError: The dictionary is to be split, but there is only one process.
        KernelError: The device is not there.
    """
    # torchrun with one process trains as without it: no exchange, and the same bits.
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        if shard_dictionary:
            from trainer.errors import PeerError

            raise PeerError(
                "--shard-dictionary splits it over several processes, and there is one;"
                " start them with `torchrun --nproc-per-node N -m trainer train ...`"
            )
        from trainer.kernels.devices import usable

        usable(device)
        yield ONE_WORLD
        return
    from trainer.distributed.processes import started

    with started(device) as world:
        yield world


def lead() -> bool:
    """Return whether this process is the one that writes and prints.

    It is the one that torchrun gives the number 0 in RANK.
    """
    return os.environ.get("RANK", "0") == "0"


def say(text: str, err: bool = False) -> None:
    """Print a line in the lead only, so that it appears once for all processes."""
    if lead():
        typer.echo(text, err=err)
