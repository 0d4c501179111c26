"""The README's commands and Python, as a reader would copy them.

A command is what stands behind `$ ` in a code block, with the lines that go on from it.
What a machine without GPUs, accounts or a network cannot do is listed in `LEFT_OUT`
with the reason; all else is run by `python -m tests.readme`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[2] / "README.md"
LEFT_OUT = {
    "torchrun": "several GPUs",
    "hf://": "an account of the hub, and a network",
}


class Command(NamedTuple):
    """As it stands in the README, and why it is not run, if it is not."""

    text: str
    left_out: str | None


def commands(text: str) -> list[Command]:
    """The commands of a README, in order."""
    found: list[str] = []
    open_one = False
    for line in text.splitlines():
        if open_one:
            found[-1] += "\n" + line.removeprefix("    ")
        elif line.startswith("    $ "):
            found.append(line.removeprefix("    $ "))
        else:
            continue
        open_one = _goes_on(found[-1])
    return [
        Command(one, next((why for mark, why in LEFT_OUT.items() if mark in one), None))
        for one in found
    ]


def python_blocks(text: str) -> list[str]:
    """The Python of a README, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _goes_on(command: str) -> bool:
    """Whether a quote is open, or the line's end is escaped."""
    if command.endswith("\\"):
        return True
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False
