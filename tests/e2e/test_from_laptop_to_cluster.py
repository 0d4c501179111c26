"""docs/guides/from-laptop-to-cluster.md word for word: a fresh home, a laptop's
commands, several processes, Ray, and a service that is ended and started again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.readme.tour import GUIDES, commands

PAGE = (GUIDES / "from-laptop-to-cluster.md").read_text()
PORT = 8321
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH")
# Between commands a reader looks at what the one before has printed.
UNTIL_IT_SERVES = f"until python -c 'import socket; socket.create_connection((\"127.0.0.1\", {PORT}))' 2>/dev/null; do sleep 0.2; done"


def followed() -> list[str]:
    """The page's commands, and what a reader waits for."""
    lines = []
    for command in commands(PAGE):
        lines += [f"echo '$' {command.text.split()[0]} >&2", command.text]
        if command.text.startswith("kill "):
            lines.append("wait $SERVICE || true")
        if command.text.startswith("SERVICE="):
            lines.append(UNTIL_IT_SERVES)
    return lines


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_is_followed(tmp_path: Path) -> None:
    # Not imported: Ray would keep this process' settings for the tests of clusters.
    if find_spec("ray") is None:
        pytest.skip("ray is not installed; pip install '.[ray]' brings it")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    finished = subprocess.run(
        ["bash", "-c", "\n".join(["set -euo pipefail", *followed()])],
        cwd=tmp_path,
        env={**kept, "PATH": programs, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    runs = {path.parent.name for path in (tmp_path / "runs").rglob("sae.json")}
    assert runs == {"laptop", "two", "k=8", "k=16", "first"}
    assert "completed" in finished.stdout
    secret = (tmp_path / "ada.token").read_text().strip()
    assert secret not in finished.stdout + finished.stderr
    assert secret not in (tmp_path / "serve.log").read_text()


def test_the_page_has_the_way_whole() -> None:
    text = "\n".join(command.text for command in commands(PAGE))
    for word in (
        "harvest",
        "train ",
        "sweep",
        "torchrun",
        "--engine ray",
        "serve",
        "submit",
    ):
        assert word in text
