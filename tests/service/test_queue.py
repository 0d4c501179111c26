"""The queue's methods, one by one; `test_queue_model.py` mixes them."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.service import RunProgress
from tests.service.support import SetClock, new_run
from trainer.errors import ConflictError, ServiceError, UnknownRunError
from trainer.queue import events
from trainer.queue.leases import LEASE_S
from trainer.queue.migrations import MIGRATIONS, migrate
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Outcome


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def queue(tmp_path: Path, clock: SetClock) -> Iterator[Queue]:
    with Queue(tmp_path / "state" / "service.sqlite", clock) as queue:
        yield queue


def progress(step: int) -> RunProgress:
    return RunProgress(
        step=step, steps=100, rows=10, rows_per_s=1, stall=0, loss=1, l0=2, fvu=0.5
    )


def test_submit_is_all_or_nothing(queue: Queue) -> None:
    queue.submit([new_run("a")], "ana")
    with pytest.raises(ConflictError, match="choose another name"):
        queue.submit([new_run("b"), new_run("a")], "ana")
    assert [run.name for run in queue.runs().runs] == ["a"]


def test_a_key_gives_the_same_runs(queue: Queue) -> None:
    first = queue.submit([new_run("a")], "ana", idempotency_key="k", body_digest="1")
    again = queue.submit(
        [new_run("other")], "ana", idempotency_key="k", body_digest="1"
    )
    assert again == first
    with pytest.raises(ConflictError, match="another submission"):
        queue.submit([new_run("b")], "ana", idempotency_key="k", body_digest="2")
    # another user's key is another key
    bens = queue.submit([new_run("b")], "ben", idempotency_key="k", body_digest="2")
    assert bens != first
    assert queue.counts()["queued"] == 2


def test_pages_of_runs(queue: Queue) -> None:
    queue.submit([new_run(f"r{i}") for i in range(7)], "ana", sweep="s")
    queue.submit([new_run("other")], "ben")
    page = queue.runs(sweep="s", limit=3)
    names = [run.name for run in page.runs]
    while page.next is not None:
        assert page.total == 7
        page = queue.runs(sweep="s", limit=3, after=page.next)
        names += [run.name for run in page.runs]
    assert names == [f"r{i}" for i in reversed(range(7))]
    assert queue.runs(user="ben").total == 1
    assert queue.runs(text="OTH").total == 1
    assert queue.runs(text="%").total == 0
    assert queue.runs(states=["running"]).total == 0
    assert queue.runs(states=[]).total == 0


def test_from_queued_to_completed(queue: Queue) -> None:
    a, b = queue.submit([new_run("a"), new_run("b")], "ana")
    lease = queue.start([a, b], "cpu-0")
    assert queue.slots() == {"cpu-0": [a, b]}
    run = queue.run(a)
    assert (run.state, run.slot, run.shares_with) == ("running", "cpu-0", (b,))
    assert queue.take(lease.id, 17, "then")
    assert not queue.take(lease.id, 18, "later")
    assert queue.heartbeat(lease.id, {a: progress(5)}) == "go on"
    assert queue.end(lease.id, {a: Outcome("completed"), b: Outcome("failed", "bad")})
    assert not queue.end(lease.id, {a: Outcome("failed", "too late")})
    assert queue.heartbeat(lease.id) == "lost"
    assert queue.run(a).state == "completed"
    assert queue.run(b).error == "bad"
    assert [event.kind for event in queue.events(run=a)] == [
        "queued",
        "started",
        "progress",
        "completed",
    ]
    assert queue.slots() == {}
    queue.set_published(a, "team/a")
    assert queue.run(a).published == "team/a"
    with pytest.raises(ConflictError):
        queue.set_published(b, "team/b")


def test_a_slot_has_one_lease(queue: Queue) -> None:
    a, b = queue.submit([new_run("a"), new_run("b")], "ana")
    queue.start([a], "cpu-0")
    with pytest.raises(ConflictError, match="taken"):
        queue.start([b], "cpu-0")
    with pytest.raises(ConflictError, match="not queued"):
        queue.start([a], "cpu-1")
    assert queue.run(b).state == "queued"


def test_cancel_of_one_lets_the_others_go_on(queue: Queue) -> None:
    a, b = queue.submit([new_run("a"), new_run("b")], "ana")
    lease = queue.start([a, b], "cpu-0")
    queue.cancel(a, "ben")
    assert queue.run(a).cancelling
    with pytest.raises(ConflictError, match="being saved"):
        queue.resume(a, "ana")
    assert queue.heartbeat(lease.id) == "stop"
    queue.end(lease.id, dict.fromkeys([a, b], Outcome("stopped")))
    assert (queue.run(a).state, queue.run(b).state) == ("cancelled", "queued")
    assert queue.events(run=a)[-1].text == "cancelled by ben"
    queue.cancel(a, "ben")  # once more changes nothing
    queue.resume(a, "ana")
    assert queue.run(a).state == "queued"
    with pytest.raises(ConflictError, match="no resuming"):
        queue.resume(a, "ana")
    queue.cancel(b, "ana")
    assert queue.run(b).state == "cancelled"


def test_what_has_ended_cannot_be_cancelled(queue: Queue) -> None:
    (a,) = queue.submit([new_run("a")], "ana")
    queue.end(queue.start([a], "s").id, {a: Outcome("completed")})
    with pytest.raises(ConflictError, match="nothing to cancel"):
        queue.cancel(a, "ana")
    with pytest.raises(ConflictError, match="nothing to resume"):
        queue.resume(a, "ana")
    with pytest.raises(UnknownRunError, match="trainer runs"):
        queue.cancel("nobody", "ana")


def test_a_lease_without_heartbeats_expires(queue: Queue, clock: SetClock) -> None:
    (a,) = queue.submit([new_run("a")], "ana")
    lease = queue.start([a], "cpu-0")
    clock.pass_time(LEASE_S)
    assert queue.expired() == []
    queue.heartbeat(lease.id)
    clock.pass_time(LEASE_S + 0.1)
    assert [one.id for one in queue.expired()] == [lease.id]
    assert not queue.take(lease.id, 1, None)
    assert queue.end(lease.id, {})
    assert queue.run(a).state == "queued"


def test_the_time_of_day_ends_no_lease(queue: Queue, clock: SetClock) -> None:
    (a,) = queue.submit([new_run("a")], "ana")
    lease = queue.start([a], "cpu-0")
    for day in (0.0, 4e9):
        clock.day = day
        assert queue.expired() == []
        assert queue.heartbeat(lease.id) == "go on"


@pytest.mark.parametrize("boot", ["second", "first"])
def test_leases_end_with_the_machine(queue: Queue, clock: SetClock, boot: str) -> None:
    """Also where the machine does not tell its starts apart: its clock began anew."""
    (a,) = queue.submit([new_run("a")], "ana")
    lease = queue.start([a], "cpu-0")
    clock.start, clock.now = boot, 3.0
    (expired,) = queue.expired()
    assert (expired.id, expired.this_boot) == (lease.id, boot == "first")


def test_losses_are_bounded_unless_the_run_comes_further(queue: Queue) -> None:
    (a,) = queue.submit([new_run("a")], "ana")

    def lose(step: int) -> None:
        lease = queue.start([a], "s")
        if step:
            queue.heartbeat(lease.id, {a: progress(step)})
        queue.end(lease.id, {})

    lose(5)
    lose(5)
    lose(6)  # further than before
    lose(6)
    assert queue.run(a).state == "queued"
    lose(0)
    run = queue.run(a)
    assert run.state == "failed"
    assert "3 times" in (run.error or "")
    queue.resume(a, "ana")
    lose(0)
    assert queue.run(a).state == "queued"


def test_runs_of_a_pass_that_is_lost_again_are_alone(queue: Queue) -> None:
    ids = queue.submit([new_run("a"), new_run("b")], "ana")
    for alone in (False, True):
        queue.end(queue.start(ids, "s").id, {})
        assert [run.alone for run in queue.waiting()] == [alone, alone]


def test_slot_time_is_shared_and_fades(queue: Queue, clock: SetClock) -> None:
    a, b = queue.submit([new_run("a"), new_run("b")], "ana")
    (c,) = queue.submit([new_run("c")], "ben")
    lease = queue.start([a, b, c], "cpu-0")
    clock.pass_time(9)
    queue.heartbeat(lease.id)
    assert queue.slot_times() == pytest.approx({"ana": 6, "ben": 3})
    clock.pass_time(3)
    queue.end(lease.id, {})
    assert queue.slot_times() == pytest.approx({"ana": 8, "ben": 4}, rel=1e-3)
    clock.day += 86_400
    assert queue.slot_times() == pytest.approx({"ana": 4, "ben": 2}, rel=1e-3)


def test_events_of_progress_are_bounded(queue: Queue) -> None:
    (a,) = queue.submit([new_run("a")], "ana")
    lease = queue.start([a], "s")
    for step in range(1, 1001):
        queue.heartbeat(lease.id, {a: progress(step)})
        queue.heartbeat(lease.id, {a: progress(step)})  # says nothing new
    found = queue.events(run=a)
    steps = [event.progress.step for event in found if event.progress]
    assert len(steps) <= events.MOST_PROGRESS
    assert steps[-events.NEWEST_PROGRESS :] == list(
        range(1001 - events.NEWEST_PROGRESS, 1001)
    )
    assert steps[0] == 1
    ids = [event.id for event in found]
    assert ids == sorted(set(ids))
    assert queue.events(after=ids[-2], run=a) == found[-1:]


def test_the_state_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    with Queue(folder / "service.sqlite") as queue:
        queue.submit([new_run("a")], "ana")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_queue_is_told(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    path.write_bytes(b"no database at all " * 1000)
    with pytest.raises(ServiceError, match="cannot be read"):
        Queue(path)
    assert path.read_bytes().startswith(b"no database")
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE things (x)")
    connection.commit()
    connection.close()
    with pytest.raises(ServiceError, match="another program's"):
        Queue(other)
    with pytest.raises(ServiceError, match="local disk"):
        Queue(tmp_path / "service.sqlite" / "below a file" / "service.sqlite")


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    with Queue(path) as queue:
        queue.submit([new_run(f"r{i}") for i in range(200)], "ana")
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    with Queue(path) as queue, pytest.raises(ServiceError, match="cannot be read"):
        queue.database.check()


def test_a_newer_queue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    Queue(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(ServiceError, match="upgrade actstore"):
        Queue(path)


def test_an_older_queue_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, str(path), MIGRATIONS[:1])
    connection.execute(
        "INSERT INTO runs (id, name, url, user, priority, state, spec, store_url,"
        " memory_bytes, state_bytes, rows, created) VALUES ('old', 'n', 'u', 'ana', 0,"
        " 'queued', ?, 's', 1, 1, 1, '2026-01-01T00:00:00+00:00')",
        (new_run("x").spec.model_dump_json(),),
    )
    connection.close()
    with Queue(path) as queue:
        assert queue.run("old").user == "ana"
        queue.end(queue.start(["old"], "s").id, {"old": Outcome("completed")})


def test_a_migration_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, str(path), MIGRATIONS)
    more = (*MIGRATIONS, ("ALTER TABLE runs ADD COLUMN note TEXT", "not SQL"))
    with pytest.raises(sqlite3.Error):
        migrate(connection, str(path), more)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    columns = connection.execute("SELECT name FROM pragma_table_info('runs')")
    assert version == len(MIGRATIONS)
    assert ("note",) not in columns.fetchall()
    migrate(connection, str(path), (*more[:-1], more[-1][:1]))
    columns = connection.execute("SELECT name FROM pragma_table_info('runs')")
    assert ("note",) in columns.fetchall()
    connection.close()


def test_threads_share_a_queue(queue: Queue) -> None:
    def submit(user: str) -> None:
        for i in range(20):
            queue.submit([new_run(f"{user}{i}")], user)

    threads = [threading.Thread(target=submit, args=(f"u{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.counts()["queued"] == 80
