"""Passes that Slurm's jobs train, by commands of Slurm's that are imitated."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from actstore.engines import slurm_engine
from actstore.engines.slurm_folder import JobFolder
from actstore.errors import ClusterLostError
from actstore.format.storage import Storage
from schemas.slurm import JobWork, SubmittedJobs
from tests.engines import fake_slurm
from tests.service.runs import check_same, submit, tiny_spec, train_alone, wait_until
from tests.support import make_store
from trainer.passes.executor import SubprocessExecutor
from trainer.passes.pass_on_slurm import FOLDER, _end_left
from trainer.passes.supervisor import Supervisor
from trainer.queue.database import NAME
from trainer.queue.queue import Queue
from trainer.queue.slots import Slot
from trainer.training import checkpoint

LONG = 20_000
SLOT = Slot("slurm-0", "cpu", 1 << 40, {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_store(tmp_path_factory.mktemp("passes") / "s", n_units=24).url


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with Queue(tmp_path / "state" / NAME) as queue:
        yield queue


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with Slurm's commands, which are on PATH; jobs that are left are ended."""
    folder = tmp_path / "slurm"
    programs = fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    yield folder
    fake_slurm.end_all(folder)


@pytest.fixture
def supervisor(queue: Queue, slurm: Path, tmp_path: Path) -> Iterator[Supervisor]:
    state = tmp_path / "state"
    one = Supervisor(queue, [SLOT], SubprocessExecutor(state, "slurm"), state)
    one.start()
    yield one
    one.close()
    assert one.trouble is None
    assert queue.leases() == []


def in_queue(slurm: Path) -> list[str]:
    """Jobs that Slurm has in its queue."""
    jobs = sorted((slurm / "jobs").iterdir())
    return [job.name for job in jobs if json.loads(job.read_text())["queued"]]


@pytest.mark.usefixtures("supervisor")
def test_a_pass_whose_process_is_killed_and_one_that_is_cancelled(
    queue: Queue, store: str, slurm: Path, tmp_path: Path
) -> None:
    """The job that is left is ended before another one begins."""
    spec = tiny_spec(store, rows=600 * 64)
    long = tiny_spec(store, rows=LONG * 64, log_every=1)  # no pass together
    a, b = submit(queue, tmp_path / "runs", a=spec, b=long)
    wait_until(lambda: is_saved(tmp_path / "runs" / "a"), queue)
    (lease,) = queue.leases()
    assert lease.pid is not None
    os.kill(lease.pid, signal.SIGKILL)
    wait_until(lambda: in_queue(slurm) == ["101"], queue)
    wait_until(lambda: queue.run(a).state == "completed", queue)
    assert queue.run(a).attempts == 2
    train_alone(tmp_path / "alone" / "a", spec)
    assert same_weights(tmp_path / "runs" / "a", tmp_path / "alone" / "a")
    wait_until(lambda: queue.run(b).progress is not None, queue)
    queue.cancel(b, "ana")
    wait_until(lambda: queue.run(b).state == "cancelled", queue)
    assert in_queue(slurm) == []
    assert is_saved(tmp_path / "runs" / "b")
    assert list((tmp_path / "state" / FOLDER).iterdir()) == []


def is_saved(run: Path) -> bool:
    return bool(checkpoint.steps(Storage(str(run))))


def same_weights(one: Path, other: Path) -> bool:
    name = "sae.safetensors"
    return (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("supervisor")
def test_a_pass_is_what_it_is_alone(queue: Queue, store: str, tmp_path: Path) -> None:
    spec = tiny_spec(store)
    (a,) = submit(queue, tmp_path / "runs", a=spec)
    wait_until(lambda: queue.run(a).state == "completed", queue)
    train_alone(tmp_path / "alone" / "a", spec)
    check_same(tmp_path / "runs" / "a", tmp_path / "alone" / "a")


def test_jobs_are_not_left_to_train_when_slurm_gives_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_engine, "END_JOBS_S", 0.0)
    monkeypatch.setattr(slurm_engine, "LOOK_S", 0.01)
    monkeypatch.setenv("PATH", "/nowhere")
    held, left = (JobFolder(tmp_path / name) for name in ("held", "left"))
    work = JobWork(name="w", text="")
    jobs = SubmittedJobs(what="", job_name="n", function="f", works=(work,))
    for folder in (held, left):
        folder.make()
        folder.write_submitted(jobs)
    with pytest.raises(ClusterLostError, match="left: its jobs could not be ended"):
        _end_left(tmp_path, lambda: {"held"})
    assert left.path.is_dir()
    _end_left(tmp_path, lambda: {"held", "left"})
