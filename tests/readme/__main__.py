"""`make readme`: the commands and Python of README.md and of the guides, in a folder of
their own, in order, each to its end.

Only exit codes count: figures differ by machine. A command in the background is waited
for at the end.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.readme.tour import Command, all_commands, all_python_blocks

# What the documents call `model`, and a reader brings along.
MODEL = """
from actstore.model.bridge import bridge_over_copy
from actstore.model.load_model import load_model
from schemas.source import ModelSource
model = bridge_over_copy(load_model(ModelSource(name="builtin:tiny")).module).bridge
"""


def main() -> None:
    """Run all of it, and exit with the document and the command that fails."""
    every = all_commands()
    to_run = [command for command in every if command.left_out is None]
    for command in every:
        if command.left_out is not None:
            print(
                f"left out, it needs {command.left_out}: {command.text}",
                flush=True,
            )
    blocks = all_python_blocks()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _shell(to_run, folder)
        _python(blocks, folder)
    seconds = time.monotonic() - began
    print(
        f"{len(to_run)} commands and {len(blocks)} blocks of Python ran,"
        f" {seconds:.0f} s"
    )


def _shell(to_run: list[Command], folder: str) -> None:
    """Run all commands in one shell, so that variables stay; each is shown before."""
    lines = ["set -euo pipefail"]
    for i, command in enumerate(to_run):
        shown = shlex.quote("$ " + command.text)
        lines += [f"echo; echo {shown}", command.text, f"echo {i + 1} > done"]
    lines += ["for job in $(jobs -p); do wait $job; done"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=False,
    )
    if finished.returncode:
        marker = Path(folder) / "done"
        n_done = int(marker.read_text()) if marker.exists() else 0
        if n_done < len(to_run):
            failed = to_run[n_done]
            what = f"{failed.document}: {failed.text}"
        else:
            what = "a command in the background"
        sys.exit(f"exit code {finished.returncode} of {what}")


def _python(blocks: list[str], folder: str) -> None:
    """Run all blocks in one process, in the folder that the commands have filled."""
    code = "\n".join([MODEL, *blocks])
    shown = [f">>> {line}" for block in blocks for line in block.splitlines()]
    print("\n".join(["", *shown]), flush=True)
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, check=False
    )
    if finished.returncode:
        sys.exit(f"the documents' Python ends with exit code {finished.returncode}")


if __name__ == "__main__":
    main()
