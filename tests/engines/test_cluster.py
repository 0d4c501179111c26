"""Harvests and sweeps on a Ray cluster of several nodes, of which some are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import actstore
import trainer
from actstore.errors import EngineError, SiteError
from actstore.format.local_writes import TEMPORARY
from actstore.harvesting.progress import Progress
from tests.engines.cluster import Nodes, nodes

UNITS = 24
HARVEST: dict[str, Any] = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.*.hook_mlp_out",
    "tokens": UNITS * 16 * 32,
    "context": 32,
    "unit_sequences": 16,
    "batch": 4,
}
SWEEP: dict[str, Any] = {
    "base": {
        "sae": {"kind": "topk", "n_latents": 64},
        "stream": {"batch": 128},
        "rows": 30_000,
        "log_every": 10,
        "checkpoint_every": 50,
    },
    "grid": {"sae.k": [2, 4], "seed": [0, 1]},
}
# What of a journal's line depends on the machine and the moment.
TIMES = ("rows_per_s", "stall")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and the runs of a sweep, that one process has made."""
    folder = tmp_path_factory.mktemp("alone")
    actstore.harvest(HARVEST, folder / "store")
    trainer.sweep(SWEEP, folder / "runs", store=folder / "store")
    return folder


def objects(store: Path) -> dict[str, bytes]:
    """Every object of a store; what a killed process had not written to its end is
    none.
    """
    files = (path for path in store.rglob("*") if path.is_file())
    files = (path for path in files if not path.name.startswith(TEMPORARY))
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def results(runs: Path) -> dict[str, Any]:
    """What training gave: weights, records, and journals without times."""
    found: dict[str, Any] = {}
    for run in sorted(runs.iterdir()):
        found[f"{run.name} weights"] = (run / "sae.safetensors").read_bytes()
        found[f"{run.name} record"] = (run / "sae.json").read_bytes()
        lines = (run / "journal.jsonl").read_text().splitlines()
        journal = [json.loads(line) for line in lines]
        found[f"{run.name} journal"] = [
            {key: value for key, value in line.items() if key not in TIMES}
            for line in journal
        ]
    return found


class Once:
    """Does something at the first report in which so many units are there."""

    def __init__(self, units: int, what: Callable[[], None]) -> None:
        self._units = units
        self._what = what
        self.is_done = False

    def __call__(self, progress: Progress) -> None:
        if progress.units >= self._units and not self.is_done:
            self.is_done = True
            self._what()


class BrokenOffError(Exception):
    """Ends a harvest in the middle."""


def break_off() -> None:
    raise BrokenOffError


def kill_a_worker() -> None:
    """SIGKILL a worker's process, and leave its node."""
    workers = [
        path.parent
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if "ray::RayWorker" in process_title(path)
    ]
    os.kill(int(workers[0].name), signal.SIGKILL)


def process_title(path: Path) -> str:
    """What a process calls itself; "" where it has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_node_killed_in_a_harvest_changes_nothing(
    cluster: Nodes, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.have(2)
    capfd.readouterr()
    # Begun without an engine.
    with pytest.raises(BrokenOffError):
        actstore.harvest(HARVEST, tmp_path / "store", progress=Once(2, break_off))
    kill = Once(5, cluster.kill_one)
    actstore.harvest(HARVEST, tmp_path / "store", engine=cluster.engine, progress=kill)
    assert kill.is_done
    assert objects(tmp_path / "store") == objects(alone / "store")
    import ray

    assert not ray.is_initialized()
    # Nothing of Ray's comes between lines of progress, or their JSON.
    assert capfd.readouterr() == ("", "")


def test_a_node_killed_in_a_sweep_changes_nothing(cluster: Nodes, alone: Path) -> None:
    cluster.have(2)
    runs = alone / "runs of the cluster"
    killed = threading.Event()

    def kill_one() -> None:
        while not list(runs.glob("*/checkpoints/*")):
            time.sleep(0.01)
        cluster.kill_one()
        killed.set()

    thread = threading.Thread(target=kill_one)
    thread.start()
    trainer.sweep(SWEEP, runs, store=alone / "store", engine=cluster.engine)
    thread.join()
    assert killed.is_set()
    assert results(runs) == results(alone / "runs")


def test_a_users_mistake_is_told_as_without_an_engine(
    cluster: Nodes, tmp_path: Path
) -> None:
    cluster.have(1)
    wrong = {**HARVEST, "sites": "blocks.9.hook_mlp_out"}
    with pytest.raises(SiteError) as here:
        actstore.harvest(wrong, tmp_path / "a")
    with pytest.raises(SiteError) as there:
        actstore.harvest(wrong, tmp_path / "b", engine=cluster.engine)
    assert str(there.value) == str(here.value)
    assert not (tmp_path / "b").exists()


def test_a_gpu_that_no_node_has(cluster: Nodes, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no machine of the Ray cluster has a GPU"):
        actstore.harvest(HARVEST, tmp_path / "a", engine=cluster.engine, device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_harvest_killed_at_any_instant(
    cluster: Nodes, alone: Path, tmp_path: Path, seed: int
) -> None:
    """A node, or a process, is killed before the plan is written, or later."""
    cluster.have(3)
    units = random.Random(seed).randrange(UNITS - 2)
    kill = Once(units, kill_a_worker if seed % 2 else cluster.kill_one)
    actstore.harvest(HARVEST, tmp_path / "store", engine=cluster.engine, progress=kill)
    assert objects(tmp_path / "store") == objects(alone / "store")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_sweep_killed_at_any_instant(cluster: Nodes, alone: Path, seed: int) -> None:
    cluster.have(3)
    runs = alone / f"killed {seed}"
    instant = random.Random(seed).uniform(0.0, 1.0)

    def kill_one() -> None:
        while not list(runs.glob("*/spec.json")):
            time.sleep(0.01)
        time.sleep(instant)
        (kill_a_worker if seed % 2 else cluster.kill_one)()

    thread = threading.Thread(target=kill_one)
    thread.start()
    trainer.sweep(SWEEP, runs, store=alone / "store", engine=cluster.engine, workers=2)
    thread.join()
    assert results(runs) == results(alone / "runs")
