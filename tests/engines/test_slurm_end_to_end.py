"""Harvests and sweeps by jobs in processes of their own: submitit's local executor, and
Slurm's commands as `fake_slurm` has them, with jobs killed, timed out and left alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import actstore
import trainer
from actstore.engines import slurm_engine
from actstore.engines.slurm_folder import JobFolder
from actstore.errors import EngineError, SpecError
from tests.engines import fake_slurm
from tests.engines.test_slurm_jobs import objects, some_jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HARVEST = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.{0..1}.hook_mlp_out",
    "tokens": 30_000,
    "unit_sequences": 8,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "store"
    actstore.harvest(HARVEST, folder)
    return folder


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with Slurm's commands, which are on PATH; jobs that are left are ended."""
    folder = tmp_path / "slurm"
    programs = fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(slurm_engine, "LOOK_S", 0.1)
    monkeypatch.setattr(slurm_engine, "ASK_QUEUE_S", 0.5)
    yield folder
    fake_slurm.end_all(folder)


def when_working(slurm: Path, job: str, out: Path, number: int) -> threading.Thread:
    """Send a signal to a job once something of its work lies in `out`."""

    def send() -> None:
        process = fake_slurm.works(slurm, job)
        while not out.exists() or not list(out.rglob("*")):
            time.sleep(0.05)
        os.kill(process, number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_local_jobs_give_the_same_store(store: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    actstore.harvest(HARVEST, two, engine="slurm:local", workers=2)
    assert objects(two) == objects(store)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_killed_job_is_told_and_the_same_call_goes_on(
    store: Path, slurm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "two"
    kill = when_working(slurm, "100_1", out / "units", signal.SIGKILL)
    with pytest.raises(EngineError, match="worker 2/2, job 100_1") as failed:
        actstore.harvest(HARVEST, out, engine="slurm", workers=2)
    kill.join()
    assert "1 of 2 jobs failed" in str(failed.value)
    log = out.parent / ".two.slurm" / "100_1_0_log.out"
    assert str(log) in str(failed.value)
    assert log.exists()
    actstore.harvest(HARVEST, out, engine="slurm", workers=2)
    assert objects(out) == objects(store)
    assert [path.name for path in out.parent.iterdir()] == ["two"]


def test_a_harvest_whose_time_is_up_goes_on(
    store: Path, slurm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "two"
    up = when_working(slurm, "100_0", out / "units", signal.SIGUSR2)
    actstore.harvest(HARVEST, out, engine="slurm", workers=2)
    up.join()
    assert objects(out) == objects(store)
    assert restarts(slurm, "100_0") == 1


def restarts(slurm: Path, job: str) -> int:
    """How often a job was put into the queue again, once it has left it."""
    while True:
        state = json.loads((slurm / "jobs" / job).read_text())
        if not state["queued"]:
            found: int = state["restarts"]
            return found
        time.sleep(0.05)


def sweep_of(store: Path) -> dict[str, Any]:
    sae = {"kind": "topk", "n_latents": 512}
    base = {"store": str(store), "sae": sae, "rows": 500_000, "checkpoint_every": 50}
    return {"base": base, "grid": {"sae.k": [2, 4]}}


def weights(runs: dict[str, str]) -> dict[str, bytes]:
    return {
        name: (Path(folder) / "sae.safetensors").read_bytes()
        for name, folder in runs.items()
    }


def test_a_sweep_whose_time_is_up_goes_on(
    store: Path, slurm: Path, tmp_path: Path
) -> None:
    runs = trainer.sweep(sweep_of(store), tmp_path / "one")
    out = tmp_path / "out" / "two"
    begun = out / "k=2" / "checkpoints"
    up = when_working(slurm, "100_0", begun, signal.SIGUSR2)
    others = trainer.sweep(sweep_of(store), out, engine="slurm", workers=2)
    up.join()
    assert weights(runs) == weights(others)
    assert [path.name for path in out.parent.iterdir()] == ["two"]
    assert restarts(slurm, "100_0") == 1


def test_jobs_outlive_the_command_which_finds_them_again(
    store: Path, slurm: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_of(store)))
    out = tmp_path / "out" / "two"
    words = [sys.executable, "-m", "trainer", "sweep", str(file), "--out", str(out)]
    words += ["--engine", "slurm", "--workers", "2", "--partition", "gpu"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as command:
        works = fake_slurm.works(slurm, "100_0")
        command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "scancel 100)" in told
    assert "Traceback" not in told
    # They are there; here they wait, so that the next command finds them.
    jobs = [works, fake_slurm.works(slurm, "100_1")]
    for number in jobs:
        os.kill(number, signal.SIGSTOP)
    # Something else for the same output has to wait.
    other = sweep_of(store)
    other["base"]["rows"] = 400_000
    with pytest.raises(SpecError, match="scancel 100"):
        trainer.sweep(other, tmp_path / "out" / "two", engine="slurm", resume=False)
    with subprocess.Popen(
        [*words, "--resume"], stderr=subprocess.PIPE, text=True
    ) as again:
        assert again.stderr is not None
        told = ""
        while "waiting for the jobs that were submitted before (100)" not in told:
            line = again.stderr.readline()
            assert line, told
            told += line
        for number in jobs:
            os.kill(number, signal.SIGCONT)
        again.communicate(timeout=120)
    assert again.returncode == 0
    assert len(list((slurm / "jobs").iterdir())) == 2
    assert len(weights({name: str(out / name) for name in ("k=2", "k=4")})) == 2
    assert [path.name for path in out.parent.iterdir()] == ["two"]
    # Done by jobs that nobody waited for: their folder goes, too.
    left = JobFolder(out.parent / ".two.slurm")
    left.make()
    left.write_submitted(some_jobs(1))
    trainer.sweep(sweep_of(store), out, engine="slurm", resume=True)
    assert not left.path.exists()
