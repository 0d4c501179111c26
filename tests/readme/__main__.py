"""`make readme`: the README's commands and Python in a folder of their own, in order,
each to its end.

Only exit codes count: figures differ by machine. A command in the background is waited
for at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.readme.tour import README, commands, python_blocks

MODEL = """
from actstore.model.bridge import bridge_over_copy
from actstore.model.load_model import load_model
from schemas.source import ModelSource
model = bridge_over_copy(load_model(ModelSource(name="builtin:tiny")).module).bridge
"""  # what the README calls `model`, and a reader brings along


def main() -> None:
    text = (Path(sys.argv[1]) if len(sys.argv) > 1 else README).read_text()
    every = commands(text)
    run = [one.text for one in every if one.left_out is None]
    for one in every:
        if one.left_out is not None:
            print(f"left out, it needs {one.left_out}: {one.text}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _shell(run, folder)
        _python(python_blocks(text), folder)
    print(
        f"{len(run)} commands and {len(python_blocks(text))} blocks of Python ran, {time.monotonic() - began:.0f} s"
    )


def _shell(run: list[str], folder: str) -> None:
    """All in one shell, so that variables stay; each is shown before it runs."""
    lines = ["set -euo pipefail"]
    for i, one in enumerate(run):
        lines += [f"echo; echo {_quoted('$ ' + one)}", one, f"echo {i + 1} > done"]
    lines += ["for job in $(jobs -p); do wait $job; done"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=False,
    )
    if done.returncode:
        marker = Path(folder) / "done"
        at = int(marker.read_text()) if marker.exists() else 0
        what = run[at] if at < len(run) else "a command in the background"
        sys.exit(f"README.md: exit code {done.returncode} of: {what}")


def _python(blocks: list[str], folder: str) -> None:
    """All in one process, in the folder that the commands have filled."""
    code = "\n".join([MODEL, *blocks])
    print(
        "\n".join(
            ["", *(f">>> {line}" for block in blocks for line in block.splitlines())]
        ),
        flush=True,
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, check=False
    )
    if done.returncode:
        sys.exit(f"README.md: its Python ends with exit code {done.returncode}")


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


if __name__ == "__main__":
    main()
