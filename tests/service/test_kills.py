"""Real SIGKILLs of the service and of the processes that train, at random instants:
every run ends as completed, once, with the bytes of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from schemas.train import TrainSpec
from tests.service.forked import Forks, forks
from tests.service.runs import BATCH, STEPS, check_same, tiny_spec, train_alone
from tests.service.support import new_run
from tests.support import make_store
from trainer.client import connection
from trainer.client.service_client import ServiceClient
from trainer.errors import UnreachableError
from trainer.passes.process_identity import end_process, lives, process_start
from trainer.queue.database import NAME
from trainer.queue.queue import Queue
from trainer.service.tokens import Tokens

SEEDS = 4
THRICE = "3 times in a row"
N_USERS, N_SUBMITTED = 3, 8


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

    def __init__(self, state: Path, forked: Forks, *api: str) -> None:
        state.mkdir()
        self.state = state
        self._forked = forked
        self._api = api
        (state / "service.log").touch()
        self.start()

    def start(self) -> None:
        self.pid = self._forked.fork(
            "service",
            str(self.state),
            "2",
            *self._api,
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


def resume_failed(queue: Queue) -> None:
    """Resume runs whose process was killed three times before it came any further."""
    for run in queue.runs(states=["failed"], limit=1000).runs:
        queue.resume(run.id, run.user)


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
                events = queue.events(run=run.id)
                kinds = [event.kind for event in events]
                assert kinds.count("completed") == 1
                assert kinds[-1] == "completed"
                failures = [one.text for one in events if one.kind == "failed"]
                assert [text for text in failures if THRICE not in text] == []
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
    # so many of each: of the service, and of a process that trains
    while kills["both"] + min(kills["service"], kills["pass"]) < n_kills:
        resume_failed(queue)
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
        resume_failed(queue)
        time.sleep(0.05)
    return n_sets * len(specs)


@contextlib.contextmanager
def started(state: Path, forked: Forks, *api: str) -> Iterator[Service]:
    """A service; it and its passes are gone after the `with`.

    api: its port, runs and stores, where it has an API.
    """
    service = Service(state, forked, *api)
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
    killed_service(tmp_path, forked, specs, undisturbed, n_kills=8)


@pytest.mark.slow
def test_many_kills(
    tmp_path: Path, forked: Forks, specs: list[TrainSpec], undisturbed: list[Path]
) -> None:
    killed_service(tmp_path, forked, specs, undisturbed, n_kills=100)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def submit_by_http(
    url: str, token: str, specs: list[TrainSpec], user: int, begun: threading.Barrier
) -> set[str]:
    """Submit runs one after the other, whether the service is there or not; return the
    ids that it has answered with.
    """
    found = set()
    draw = random.Random(user)
    with ServiceClient(url, token=token, patience_s=200) as client:
        wait_for(client)
        begun.wait(60)
        for number in range(N_SUBMITTED):
            spec = specs[number % len(specs)]
            name = f"{user}-{number}-{number % len(specs)}"
            [run] = client.submit(spec, name=name)
            found.add(run.id)
            time.sleep(draw.random())
    return found


def wait_until_open(port: int) -> None:
    """Wait until a service listens."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), closing(socket.socket()) as one:
            one.connect(("127.0.0.1", port))
            return
        time.sleep(0.02)
    pytest.fail("the service does not listen")


def wait_for(client: ServiceClient) -> None:
    """Wait for a service that has only just begun: a client gives up on that soon."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with contextlib.suppress(UnreachableError):
            client.state()
            return
        time.sleep(0.1)
    pytest.fail("the service does not answer")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_submission_is_lost_or_doubled(
    tmp_path: Path,
    forked: Forks,
    specs: list[TrainSpec],
    undisturbed: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The service with its API is killed at 40 random instants, while users submit."""
    # it is back within a second: a client that waits for ten would rarely meet it
    monkeypatch.setattr(connection, "LONGEST_WAIT_S", 0.5)
    draw = random.Random(16)
    port = free_port()
    places = (str(tmp_path / "runs"), str(Path(specs[0].store).parent))
    with (
        started(tmp_path / "state", forked, str(port), *places) as service,
        ThreadPoolExecutor(N_USERS) as users,
    ):
        tokens = [
            Tokens(service.state).make(f"user{user}", "submitter")
            for user in range(N_USERS)
        ]
        url = f"http://127.0.0.1:{port}"
        begun = threading.Barrier(N_USERS + 1)
        asked = [
            users.submit(submit_by_http, url, token, specs, user, begun)
            for user, token in enumerate(tokens)
        ]
        begun.wait(60)
        n_kills = 0
        while n_kills < 40 or not all(one.done() for one in asked):
            # now and then before it answers at all
            if draw.random() < 0.8:
                wait_until_open(port)
            time.sleep(draw.random() * 0.8)
            service.kill()
            service.start()
            n_kills += 1
            if n_kills >= 40:
                wait_until_open(port)
                time.sleep(3)  # what is left of the submissions
        answered = [one.result() for one in asked]
        with Queue(service.state / NAME) as queue:
            n_runs = N_USERS * N_SUBMITTED
            give_up = time.monotonic() + 120
            while queue.counts()["completed"] < n_runs:
                assert time.monotonic() < give_up, (queue.counts(), service.log())
                time.sleep(0.05)
            runs = queue.runs(limit=1000).runs
        assert {run.id for run in runs} == set.union(*answered)
        assert len(runs) == n_runs
        assert all(len(one) == N_SUBMITTED for one in answered)
        for run in runs:
            check_same(Path(run.url), undisturbed[int(run.name[-1])])
        assert "Traceback" not in service.log()
