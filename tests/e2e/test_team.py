"""docs/guides/team.md word for word, against a real S3 server: one machine harvests and
publishes, another one, with an empty home, finds the store, trains, and publishes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readme.tour import GUIDES, commands, python_blocks
from tests.s3_server import server

PAGE = (GUIDES / "team.md").read_text()
HARVESTER, OTHERS = PAGE.split("## Everybody else")
# What a machine has, besides what the page says.
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH")


@pytest.fixture(scope="module")
def team_server() -> Iterator[dict[str, str]]:
    """A server whose bucket is called as the page's."""
    why = server.missing()
    if why is not None:
        pytest.skip(why)
    with server.server(bucket="team") as names:
        yield names


def machine(home: Path, names: dict[str, str]) -> dict[str, str]:
    """The environment of a machine on which nothing has been done yet."""
    home.mkdir()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {
        **kept,
        **names,
        "PATH": programs,
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }


def run(page: str, environment: dict[str, str]) -> str:
    """Run a page's commands in one shell; return what they print."""
    lines = ["set -euo pipefail", *(command.text for command in commands(page))]
    finished = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=environment["HOME"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.real_s3
@pytest.mark.timeout(600)
def test_a_team_shares_a_store_and_an_sae(
    team_server: dict[str, str], tmp_path: Path
) -> None:
    run(HARVESTER, machine(tmp_path / "harvester", team_server))
    other = machine(tmp_path / "other", team_server)
    told = run(OTHERS, other)
    assert "tiny-mlp" in told
    assert "tiny-topk" in told
    cached = [path for path in (tmp_path / "other/cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in cached) > 1 << 20
    (block,) = python_blocks(OTHERS)
    # The catalog is known from the page's export, which a new process does not have.
    shown = block + "print(latents.shape)\n"
    finished = subprocess.run(
        [sys.executable, "-c", shown],
        cwd=other["HOME"],
        env={**other, "ACTSTORE_CATALOG": "s3://team/catalog"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "[100, " in finished.stdout
