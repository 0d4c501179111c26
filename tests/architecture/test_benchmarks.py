"""Benchmarks are run by hand, and must not rot between runs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import BENCHES, PEERS

ROOT = Path(__file__).parents[2]

# tables, not ratios; a simulation; one that needs a GPU, and some that need a machine to
# themselves
BY_HAND = (
    "stream_table",
    "codecs",
    "learning_rates",
    "cluster_simulation",
    "gpu",
    "service_load",
    "engines",
    "token_blocks",
)


def test_make_bench_knows_them_all() -> None:
    there = {path.stem for path in (ROOT / "tests/benchmarks").glob("*.py")} - {
        "__init__",
        "__main__",
    }
    assert {*BENCHES, *PEERS, *BY_HAND} == there


@pytest.mark.parametrize("name", [*BENCHES, *PEERS, *BY_HAND])
def test_each_can_be_imported(name: str) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert callable(module.main)


def test_one_starts_as_make_bench_starts_it() -> None:
    words = [sys.executable, "-m", "tests.benchmarks.writing", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "--units" in done.stdout) == (0, True), done.stderr


def test_what_workers_run_by_its_path_is_there() -> None:
    """Workers of other packages' environments cannot import ours."""
    from tests.benchmarks.peers import worker

    assert worker.ALLOCATOR.is_file()
    assert "def keep_freed_memory" in worker.ALLOCATOR.read_text()
