"""Several processes on one queue, slots of machines, logs."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.support import new_run
from trainer.errors import ConflictError, ServiceError
from trainer.passes import pass_log
from trainer.passes.executor import SubprocessExecutor
from trainer.passes.pass_log import begin_log, log_path, trim
from trainer.passes.process_identity import end_process, lives, process_start
from trainer.passes.supervisor import Supervisor
from trainer.queue import slots
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Outcome

N_RUNS = 40


def take_turns(path: Path) -> None:
    """Start and end whatever is queued, as a scheduler of its own."""
    with Queue(path) as queue:
        while waiting := queue.waiting():
            try:
                lease = queue.start([waiting[0].id], f"cpu-{os.getpid()}")
            except ConflictError:
                continue
            queue.heartbeat(lease.id)
            queue.end(lease.id, {waiting[0].id: Outcome("completed")})


def test_processes_share_a_queue(tmp_path: Path) -> None:
    """Two that take runs at the same time: each run is trained once."""
    path = tmp_path / "service.sqlite"
    context = multiprocessing.get_context("fork")
    with Queue(path) as queue:
        queue.submit([new_run(f"r{i}") for i in range(N_RUNS)], "ana")
    others = [context.Process(target=take_turns, args=(path,)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    with Queue(path) as queue:
        assert queue.counts()["completed"] == N_RUNS
        kinds = [event.kind for event in queue.events()]
        assert kinds.count("started") == kinds.count("completed") == N_RUNS


def test_a_folder_has_one_service(tmp_path: Path) -> None:
    executor = SubprocessExecutor(tmp_path)
    with Queue(tmp_path / "service.sqlite") as queue:
        one = Supervisor(queue, [], executor, tmp_path)
        with pytest.raises(ServiceError, match="another service"):
            Supervisor(queue, [], executor, tmp_path)
        one.close()
        Supervisor(queue, [], executor, tmp_path).close()


def test_a_left_process_is_known_by_its_start() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    with subprocess.Popen(command, start_new_session=True) as other:
        start = process_start(other.pid)
        assert start is not None
        assert lives(other.pid, start)
        # another process of the same number is let alone
        assert not lives(other.pid, "another start")
        assert end_process(other.pid, "another start")
        assert other.poll() is None
        assert end_process(other.pid, start)
        assert not lives(other.pid, start)


def test_slots_of_cores() -> None:
    (whole,) = slots.machine_slots("cpu")
    assert (whole.name, whole.device, whole.environment) == ("cpu-0", "cpu", {})
    parts = slots.machine_slots("cpu", 2)
    assert [slot.name for slot in parts] == ["cpu-0", "cpu-1"]
    assert sum(slot.memory_bytes for slot in parts) <= 1.2 * whole.memory_bytes
    with pytest.raises(ServiceError, match="1 or more"):
        slots.machine_slots("cpu", 0)


def test_slots_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "gpu_memory", lambda: [100, 200])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7")
    found = slots.machine_slots()
    assert [(slot.name, slot.device, slot.memory_bytes) for slot in found] == [
        ("cuda:0", "cuda", 90),
        ("cuda:1", "cuda", 180),
    ]
    visible = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found]
    assert visible == ["3", "GPU-7"]
    assert len(slots.machine_slots("cuda", 1)) == 1
    with pytest.raises(ServiceError, match="2 GPUs"):
        slots.machine_slots("cuda", 3)
    monkeypatch.setattr(slots, "gpu_memory", list)
    with pytest.raises(ServiceError, match="no GPU"):
        slots.machine_slots("cuda")


def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_log, "MOST_LOGS", 3)
    for i in range(5):
        os.utime(begin_log(tmp_path, str(i)), (i, i))
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "2.log",
        "3.log",
        "4.log",
    ]
    path = log_path(tmp_path, "4")
    with path.open("ab") as log:
        log.write(b"x" * (pass_log.MOST_BYTES + 1) + b"the end\n")
        log.flush()
        trim(path)
        log.write(b"and more\n")
    text = path.read_bytes()
    assert text.endswith(b"the end\nand more\n")
    assert len(text) < pass_log.KEPT_BYTES + 100
