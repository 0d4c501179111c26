"""The command to go on with, as the user typed it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actstore.machine.stop_signals import Stopped

RESUME = "--resume"
# others that train, such as the recipes, go on by themselves
COMMANDS = ("train", "sweep")


@contextmanager
def saying_how_to_resume(console: Any) -> Iterator[None]:
    """A signal that ends what is inside is told with the command that goes on; then
    Stopped goes on its way.
    """
    try:
        yield
    except Stopped as stopped:
        what = stopped.saved or "stopped; what was saved before is kept"
        for line in (f"{what}; go on with", f"  {resuming()}"):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        stopped.told = True
        raise


def resuming(
    words: Sequence[str] | None = None,
    typed: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> str:
    """The command line that this process is of, with --resume. words: as in sys.argv;
    typed: as in sys.orig_argv.
    """
    words, typed = (
        sys.argv if words is None else words,
        (sys.orig_argv if typed is None else typed),
    )
    own = list(words[1:])
    if RESUME not in own and " ".join(own[:1]) in COMMANDS:
        own.append(RESUME)
    return shlex.join([*_program(words, typed, environment), *own])


def _program(
    words: Sequence[str], typed: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """What comes before the command line's own words."""
    if environment.get("WORLD_SIZE", "1") != "1":
        return _torchrun(environment)
    path = Path(words[0])
    if path.name == "__main__.py" or not path.is_file():  # python -m, python -c
        return list(typed[: len(typed) - len(words) + 1])
    found = shutil.which(path.name)
    return [
        path.name if found is not None and Path(found).samefile(path) else str(path)
    ]


def _torchrun(environment: Mapping[str, str]) -> list[str]:
    """Its own options are not known here; those that count are."""
    size, here = environment["WORLD_SIZE"], environment.get("LOCAL_WORLD_SIZE", "1")
    nodes = [] if size == here else [f"--nnodes={int(size) // int(here)}", "..."]
    return ["torchrun", *nodes, f"--nproc-per-node={here}", "-m", "trainer"]
