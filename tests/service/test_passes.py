"""From a submission to a finished run: a real supervisor, and the real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from actstore.errors import ClusterLostError, SpecError
from actstore.format.storage import Storage
from actstore.machine.stop_signals import signals
from tests.service.runs import check_same, submit, tiny_spec, train_alone, wait_until
from tests.support import make_store
from trainer.errors import ServiceError
from trainer.passes import executor, pass_process
from trainer.passes.executor import SubprocessExecutor, environment
from trainer.passes.heartbeats import ASK_AFTER_S
from trainer.passes.pass_log import FOLDER
from trainer.passes.supervisor import Supervisor
from trainer.queue.database import NAME
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Outcome
from trainer.queue.slots import Slot, engine_slots
from trainer.runs.run_lock import RunLock
from trainer.training import checkpoint

SLOT = Slot("cpu-0", "cpu", 1 << 40, {"OMP_NUM_THREADS": "1"})
LONG = 100_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_store(tmp_path_factory.mktemp("passes") / "s", n_units=24).url


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with Queue(tmp_path / "state" / NAME) as queue:
        yield queue


@pytest.fixture
def supervisor(queue: Queue, tmp_path: Path) -> Iterator[Supervisor]:
    state = tmp_path / "state"
    one = Supervisor(queue, [SLOT], SubprocessExecutor(state), state)
    one.start()
    yield one
    one.close()
    assert one.trouble is None
    assert queue.leases() == []


def test_runs_of_a_pass_fare_each_by_itself(
    queue: Queue, supervisor: Supervisor, store: str, tmp_path: Path
) -> None:
    """One diverges, one has ended before in its folder; the others are what they are
    when each is trained alone.
    """
    good, more = tiny_spec(store), tiny_spec(store, seed=1)
    bad = tiny_spec(store, optimiser={"lr": 1e9})
    train_alone(tmp_path / "runs" / "more", more)
    before = (tmp_path / "runs" / "more" / "sae.json").stat().st_mtime_ns
    ids = submit(queue, tmp_path / "runs", bad=bad, good=good, more=more)
    supervisor.wake()
    wait_until(lambda: all(queue.run(run).ended for run in ids), queue)
    failed, done, was_done = (queue.run(run) for run in ids)
    assert (failed.state, done.state, was_done.state) == (
        "failed",
        "completed",
        "completed",
    )
    assert "the loss is" in (failed.error or "")
    assert "Traceback" not in (failed.error or "")
    assert done.progress is not None
    assert done.progress.step == done.progress.steps
    train_alone(tmp_path / "alone" / "good", good)
    check_same(tmp_path / "runs" / "good", tmp_path / "alone" / "good")
    assert (tmp_path / "runs" / "more" / "sae.json").stat().st_mtime_ns == before


def test_cancel_and_resume(
    queue: Queue, supervisor: Supervisor, store: str, tmp_path: Path
) -> None:
    """The run that shares its pass goes on; the one that was cancelled does so later.
    A service that ends has all of them saved.
    """
    spec = tiny_spec(store, rows=LONG * 64, checkpoint_every=LONG)
    a, b = submit(queue, tmp_path / "runs", a=spec, b=spec)

    def trains(run: str, attempts: int) -> bool:
        found = queue.run(run)
        return found.attempts == attempts and found.progress is not None

    wait_until(lambda: trains(a, 1) and trains(b, 1), queue)
    assert queue.run(a).shares_with == (b,)
    queue.cancel(a, "ana")
    wait_until(lambda: queue.run(a).state == "cancelled", queue)
    saved = [*(tmp_path / "runs" / "a" / "checkpoints").glob("*/state.json")]
    assert len(saved) == 1
    wait_until(lambda: queue.run(b).attempts == 2, queue)
    queue.resume(a, "ana")
    assert queue.run(a).state == "queued"
    supervisor.close()
    assert [queue.run(run).state for run in (a, b)] == ["queued", "queued"]
    assert "lost" not in {event.kind for event in queue.events()}


@pytest.mark.slow
def test_a_process_that_lost_its_lease_ends_at_once(
    queue: Queue, store: str, tmp_path: Path
) -> None:
    """One that stood still for long asks before it writes: what came meanwhile has the
    run.
    """
    state = tmp_path / "state"
    (a,) = submit(queue, tmp_path / "runs", a=tiny_spec(store, rows=LONG * 64))
    lease = queue.start([a], "cpu-0")
    process = SubprocessExecutor(state).start(lease, SLOT)
    wait_until(lambda: queue.run(a).progress is not None, queue)
    os.kill(process.pid, signal.SIGSTOP)
    queue.end(lease.id, {})
    queue.cancel(a, "ana")
    storage = Storage(str(tmp_path / "runs" / "a"))
    before = checkpoint.steps(storage)[-1]
    time.sleep(ASK_AFTER_S + 0.5)
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: process.ended() is not None, queue)
    assert process.ended() == "its process ended with exit code 75"
    log = (state / FOLDER / f"{lease.id}.log").read_text()
    assert log == "ended at once: its lease was lost\n"
    # what it was about to write when it was stopped, and no more
    assert checkpoint.steps(storage)[-1] <= before + 7
    # one that comes too late for its lease does nothing either
    late = SubprocessExecutor(state).start(lease, SLOT)
    wait_until(lambda: late.ended() is not None, queue)
    assert queue.run(a).state == "cancelled"


def test_a_process_is_given_what_it_needs() -> None:
    there = {
        "PATH": "/bin",
        "HOME": "/home/ana",
        "AWS_SECRET_ACCESS_KEY": "s",
        "ACTSTORE_STORAGE_OPTIONS": "{}",
        "ACTSTORE_TOKEN": "secret",
        "ACTSTORE_SERVICE": "https://train",
        "HF_TOKEN": "secret",
        "WANDB_API_KEY": "secret",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "SSH_AUTH_SOCK": "/tmp/agent",
    }
    there["RAY_AUTH_TOKEN"] = "secret"
    slot = Slot("cuda:1", "cuda", 1, {"CUDA_VISIBLE_DEVICES": "1"})
    assert environment(there, slot) == {
        "PATH": "/bin",
        "HOME": "/home/ana",
        "AWS_SECRET_ACCESS_KEY": "s",
        "ACTSTORE_STORAGE_OPTIONS": "{}",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    # it has to be let into the cluster
    assert environment(there, slot, "ray:auto")["RAY_AUTH_TOKEN"] == "secret"
    there |= {"SBATCH_PARTITION": "gpu", "SLURM_CONF": "/etc/slurm.conf"}
    by_slurm = environment(there, slot, "slurm")
    assert by_slurm["SBATCH_PARTITION"] == "gpu"
    assert "RAY_AUTH_TOKEN" not in by_slurm


def test_what_places_passes(tmp_path: Path) -> None:
    SubprocessExecutor(tmp_path, "ray:10.0.0.1:6379")
    with pytest.raises(SpecError, match="wanted ray"):
        SubprocessExecutor(tmp_path, "kubernetes")
    SubprocessExecutor(tmp_path, "slurm")
    with pytest.raises(ServiceError, match="it is for trying commands"):
        SubprocessExecutor(tmp_path, "slurm:local")


@pytest.mark.slow
def test_a_pass_on_ray(queue: Queue, store: str, tmp_path: Path) -> None:
    """The process that waits for it is killed; the run goes on in another worker, and
    is what it is when it is trained alone. It may be cancelled, too.
    """
    state = tmp_path / "state"
    spec = tiny_spec(store, rows=600 * 64)
    a, b = submit(
        queue,
        tmp_path / "runs",
        a=spec,
        b=tiny_spec(store, rows=LONG * 64, log_every=1),
    )
    (slot,) = engine_slots("ray", "cpu", 1)
    supervisor = Supervisor(queue, [slot], SubprocessExecutor(state, "ray"), state)
    supervisor.start()
    try:
        wait_until(lambda: queue.run(a).progress is not None, queue)
        (lease,) = queue.leases()
        assert lease.pid is not None
        os.kill(lease.pid, signal.SIGKILL)
        wait_until(lambda: queue.run(a).state == "completed", queue)
        assert queue.run(a).attempts == 2
        wait_until(lambda: queue.run(b).progress is not None, queue)
        queue.cancel(b, "ana")
        wait_until(lambda: queue.run(b).state == "cancelled", queue)
    finally:
        supervisor.close()
    assert checkpoint.steps(Storage(str(tmp_path / "runs" / "b")))
    train_alone(tmp_path / "alone" / "a", spec)
    check_same(tmp_path / "runs" / "a", tmp_path / "alone" / "a")


def test_a_cluster_that_is_lost_is_no_runs_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(*_: object) -> None:
        raise ClusterLostError("Ray's head has given no answer")

    monkeypatch.setattr(pass_process, "_train", lost)
    monkeypatch.setattr(pass_process, "REACH_WAIT_S", 0.0)
    run = SimpleNamespace(url="runs/a", spec=tiny_spec("s"), store_url="s")
    asked = SimpleNamespace(state=tmp_path, device="cpu", engine="ray")
    with signals() as stop, stop.held():
        outcome = pass_process._trained([run], asked, (), stop, None)  # type: ignore[list-item, arg-type]
    assert outcome == Outcome("lost", "Ray's head has given no answer")


@pytest.mark.slow
def test_the_head_of_a_pass_is_killed(
    queue: Queue, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MODULE", "tests.service.hasty_pass_process")
    state = tmp_path / "state"
    spec = tiny_spec(store, rows=5000 * 64)
    (a,) = submit(queue, tmp_path / "runs", a=spec)
    (slot,) = engine_slots("ray", "cpu", 1)
    supervisor = Supervisor(queue, [slot], SubprocessExecutor(state, "ray"), state)
    supervisor.start()
    try:
        wait_until(lambda: queue.run(a).progress is not None, queue)
        (lease,) = queue.leases()
        os.kill(head_of(lease.pid), signal.SIGKILL)
        wait_until(lambda: queue.run(a).state == "completed", queue)
    finally:
        supervisor.close()
    assert queue.run(a).attempts == 2
    (lost,) = [one for one in queue.events() if one.kind == "lost"]
    assert "Ray's head" in lost.text
    train_alone(tmp_path / "alone" / "a", spec)
    # it was saved at other steps as well
    for name in ("sae.safetensors", "sae.json"):
        one, other = (tmp_path / folder / "a" / name for folder in ("runs", "alone"))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_run_that_another_process_trains_is_tried_again(
    supervisor: Supervisor,
    queue: Queue,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "MODULE", "tests.service.hasty_pass_process")
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    lock = RunLock(Storage(folder))
    lock.take()
    (a,) = submit(queue, tmp_path / "runs", a=tiny_spec(store))
    supervisor.wake()
    wait_until(lambda: any(one.kind == "lost" for one in queue.events()), queue)
    lock.free()
    wait_until(lambda: queue.run(a).state == "completed", queue)
    told = [one.text for one in queue.events() if one.kind == "lost"]
    assert all("another process is training this run" in text for text in told)


def head_of(pid: int | None) -> int:
    """The process that is the head of a pass' Ray; pid: of the pass."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_head = "gcs_server" in (folder / "cmdline").read_text()
        except OSError:
            continue
        if is_head and parent == pid:
            return int(folder.name)
    raise AssertionError("no head")
