"""Real SIGKILLs of the service and of the processes that train, at random instants:
every run ends as completed, once, with the bytes of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.train import TrainSpec
from tests.service.forked import Forks, forks
from tests.service.runs import BATCH, STEPS, check_same, tiny_spec, train_alone
from tests.service.support import new_run
from tests.support import make_store
from trainer.passes.process_identity import end_process, lives, process_start
from trainer.queue.database import NAME
from trainer.queue.queue import Queue

SEEDS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def forked(folder: Path) -> Iterator[Forks]:
    with forks(folder) as one:
        yield one


@pytest.fixture(scope="module")
def specs(folder: Path) -> list[TrainSpec]:
    """Two that share a pass, and two that share another."""
    store = make_store(folder / "store", n_units=24)
    return [
        tiny_spec(store.url, stream={"batch": BATCH, "seed": seed % 2}, seed=seed)
        for seed in range(SEEDS)
    ]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, specs: list[TrainSpec]) -> list[Path]:
    found = [folder / "undisturbed" / str(i) for i in range(SEEDS)]
    for path, one in zip(found, specs, strict=True):
        train_alone(path, one)
    return found


class Service:
    """A service that is killed and started again."""

    def __init__(self, state: Path, forked: Forks) -> None:
        state.mkdir()
        self.state = state
        self._forked = forked
        (state / "service.log").touch()
        self.start()

    def start(self) -> None:
        self.pid = self._forked.fork(
            "service",
            str(self.state),
            "2",
            log=self.state / "service.log",
        )
        self.began = process_start(self.pid)

    def kill(self) -> None:
        if self.began is not None:
            assert end_process(self.pid, self.began)

    def log(self) -> str:
        return (self.state / "service.log").read_text()


def kill_a_pass(queue: Queue, draw: random.Random) -> bool:
    leases = [lease for lease in queue.leases() if lease.pid is not None]
    if not leases:
        return False
    lease = draw.choice(leases)
    assert lease.pid is not None
    if not lives(lease.pid, lease.process_start):
        return False
    os.kill(lease.pid, signal.SIGKILL)
    return True


def submit(queue: Queue, runs: Path, specs: list[TrainSpec], n: int) -> None:
    queue.submit(
        [
            new_run(f"{n}-{i}", runs, spec=one, store_url=one.store, rows=STEPS * BATCH)
            for i, one in enumerate(specs)
        ],
        f"user{n % 2}",
    )


def killed_service(
    tmp_path: Path,
    forked: Forks,
    specs: list[TrainSpec],
    undisturbed: list[Path],
    n_kills: int,
) -> None:
    with started(tmp_path / "state", forked) as service:
        with Queue(service.state / NAME) as queue:
            n_runs = disturbed(service, queue, tmp_path / "runs", specs, n_kills)
            service.kill()
            assert not queue.leases()
            page = queue.runs(limit=1000)
            assert page.total == n_runs
            for run in page.runs:
                kinds = [event.kind for event in queue.events(run=run.id)]
                assert kinds.count("completed") == 1
                assert kinds[-1] == "completed"
                assert "failed" not in kinds
                check_same(Path(run.url), undisturbed[int(run.name[-1])])
        assert service.log() == ""


def disturbed(
    service: Service,
    queue: Queue,
    runs: Path,
    specs: list[TrainSpec],
    n_kills: int,
) -> int:
    """Kill again and again, with new runs when none is queued; wait for all of them.

    Returns:
        How many runs there are.
    """
    draw = random.Random(15)
    kills = dict.fromkeys(("service", "pass", "both"), 0)
    n_sets = 0
    while sum(kills.values()) < n_kills:
        if queue.counts()["queued"] == 0:
            submit(queue, runs, specs, n_sets)
            n_sets += 1
        time.sleep(draw.random() ** 2 * 0.6)
        whom = draw.choice(list(kills))
        if whom != "service" and not kill_a_pass(queue, draw):
            continue
        if whom != "pass":
            service.kill()
            time.sleep(draw.choice([0, 0, 0.3]))
            service.start()
        kills[whom] += 1
    print(kills, n_sets)
    give_up = time.monotonic() + 120
    while queue.counts()["completed"] < n_sets * len(specs):
        assert time.monotonic() < give_up, (queue.counts(), service.log())
        time.sleep(0.05)
    return n_sets * len(specs)


@contextlib.contextmanager
def started(state: Path, forked: Forks) -> Iterator[Service]:
    """A service; it and its passes are gone after the `with`."""
    service = Service(state, forked)
    try:
        yield service
    finally:
        service.kill()
        with Queue(state / NAME) as queue:
            for lease in queue.leases():
                if lease.pid is not None:
                    end_process(lease.pid, lease.process_start)


def test_kills(
    tmp_path: Path, forked: Forks, specs: list[TrainSpec], undisturbed: list[Path]
) -> None:
    killed_service(tmp_path, forked, specs, undisturbed, n_kills=12)


@pytest.mark.slow
def test_many_kills(
    tmp_path: Path, forked: Forks, specs: list[TrainSpec], undisturbed: list[Path]
) -> None:
    killed_service(tmp_path, forked, specs, undisturbed, n_kills=120)
