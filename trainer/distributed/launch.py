"""Under torchrun or not, as the command line sees it.

Importing this loads typer only: torch takes seconds, which `--help` need not wait for.
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
    """Give the processes that torchrun started, or this one alone.

    Of several, one tells what goes wrong inside.

    Raises:
        PeerError: One process would split a dictionary.
        KernelError: The device is not there.
    """
    # torchrun with one process is trained as without it: no exchange, the same bits
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
    """Return whether this process is the one that writes and speaks.

    torchrun numbers the processes of a run by RANK.
    """
    return os.environ.get("RANK", "0") == "0"


def say(text: str, err: bool = False) -> None:
    """Print a line, once for all processes."""
    if lead():
        typer.echo(text, err=err)
