"""Tells the user, when a signal ends training, the command that goes on with it."""

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
# Other programs that train, such as the recipes, go on by themselves.
COMMANDS = ("train", "sweep")


@contextmanager
def saying_how_to_resume(console: Any) -> Iterator[None]:
    """Print how to go on where a signal ends what is inside the `with`.

    Raises:
        Stopped: As it came, marked as told.
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
    """Return the command line of this process, with --resume.

    Args:
        words: The program and its arguments, by default sys.argv.
        typed: All words from the interpreter on, by default sys.orig_argv.
        environment: The environment, which tells whether torchrun started this.
    """
    words = sys.argv if words is None else words
    typed = sys.orig_argv if typed is None else typed
    arguments = list(words[1:])
    is_command = arguments[:1] != [] and arguments[0] in COMMANDS
    if is_command and RESUME not in arguments:
        arguments.append(RESUME)
    return shlex.join([*_program(words, typed, environment), *arguments])


def _program(
    words: Sequence[str],
    typed: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """Return what comes before the arguments on the command line."""
    if environment.get("WORLD_SIZE", "1") != "1":
        return _torchrun(environment)
    path = Path(words[0])
    is_module_or_code = path.name == "__main__.py" or not path.is_file()
    if is_module_or_code:  # python -m ..., python -c ...
        n_arguments = len(words) - 1
        return list(typed[: len(typed) - n_arguments])
    on_path = shutil.which(path.name)
    if on_path is not None and Path(on_path).samefile(path):
        return [path.name]
    return [str(path)]


def _torchrun(environment: Mapping[str, str]) -> list[str]:
    """Return torchrun with the options that count.

    How torchrun itself was called is not known here; "..." stands for where the other
    nodes are.
    """
    n_processes = environment["WORLD_SIZE"]
    n_here = environment.get("LOCAL_WORLD_SIZE", "1")
    nodes = []
    if n_processes != n_here:
        nodes = [f"--nnodes={int(n_processes) // int(n_here)}", "..."]
    return ["torchrun", *nodes, f"--nproc-per-node={n_here}", "-m", "trainer"]
