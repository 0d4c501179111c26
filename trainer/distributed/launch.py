"""Under torchrun or not, as the command line sees it. Importing this loads typer only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from trainer.distributed.group_start import Together


@contextmanager
def under_torchrun(device: str, shard_dictionary: bool) -> Iterator[Together | None]:
    """The processes that torchrun started, of which one tells what goes wrong inside;
    None for one process.

    Raises PeerError for one process that would split a dictionary, KernelError for a
    device that it does not have.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        if shard_dictionary:
            from trainer.errors import PeerError

            raise PeerError(
                "--shard-dictionary splits it over several processes, and there is one;"
                " start them with `torchrun --nproc-per-node N -m trainer train ...`"
            )
        from trainer.kernels.devices import usable

        usable(device)
        yield None
        return
    from trainer.distributed.group_start import Together
    from trainer.distributed.processes import started

    with started(device) as world:
        yield Together(world, shard_dictionary)


def lead() -> bool:
    """Whether this process is the one that writes and speaks: torchrun numbers those of
    a run by RANK.
    """
    return os.environ.get("RANK", "0") == "0"


def say(text: str, err: bool = False) -> None:
    """Print a line, once for all processes."""
    if lead():
        typer.echo(text, err=err)
