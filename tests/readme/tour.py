"""The commands and the Python of README.md and of the guides, as a reader would copy
them.

A command is what stands after `$ ` in an indented code block, with the lines that go on
from it. What a machine without GPUs, accounts or a network cannot do is listed in
`LEFT_OUT` with the reason; all else is run by `python -m tests.readme`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"

# In the order in which a reader would go through them: a guide uses the store and the
# runs that those before it have made.
DOCUMENTS = (
    ROOT / "README.md",
    GUIDES / "harvest.md",
    GUIDES / "train.md",
    GUIDES / "sweeps.md",
    GUIDES / "several-gpus.md",
    GUIDES / "engines.md",
    GUIDES / "import-and-export.md",
    GUIDES / "sharing.md",
    GUIDES / "object-stores.md",
    GUIDES / "cache.md",
    GUIDES / "python.md",
    GUIDES / "other-tools.md",
)
LEFT_OUT = {
    "torchrun": "several GPUs",
    "hf://": "an account of the hub, and a network",
    # tests/e2e/test_team.py does the like against a real server
    "s3://": "an object store",
}


class Command(NamedTuple):
    """A command of a document, and why it is not run, if it is not.

    Attributes:
        text: The command as it stands there.
        left_out: The reason why it is not run; None where it is.
        document: The name of the document's file.
    """

    text: str
    left_out: str | None
    document: str = ""


def commands(text: str, document: str = "") -> list[Command]:
    """Return the commands of a document's text, in order."""
    found: list[str] = []
    is_open = False
    for line in text.splitlines():
        if is_open:
            found[-1] += "\n" + line.removeprefix("    ")
        elif line.startswith("    $ "):
            found.append(line.removeprefix("    $ "))
        else:
            continue
        is_open = _goes_on(found[-1])
    return [Command(command, _reason(command), document) for command in found]


def all_commands() -> list[Command]:
    """Return the commands of all documents, in the order in which they run."""
    return [
        command
        for path in DOCUMENTS
        for command in commands(path.read_text(), path.name)
    ]


def python_blocks(text: str) -> list[str]:
    """Return the Python of a document's text, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def all_python_blocks() -> list[str]:
    """Return the Python of all documents, in the order in which it runs."""
    return [block for path in DOCUMENTS for block in python_blocks(path.read_text())]


def _reason(command: str) -> str | None:
    for mark, reason in LEFT_OUT.items():
        if mark in command:
            return reason
    return None


def _goes_on(command: str) -> bool:
    """Whether a quote is open, or the line's end is escaped."""
    if command.endswith("\\"):
        return True
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False
