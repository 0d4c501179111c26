"""Leases: which pass is trained on which slot, kept by heartbeats.

A pass' process that has not been heard of for `LEASE_S` has lost its lease, and so has
one from before the machine began. Whoever ends a lease, the process or the service,
says how each run fared; nobody can end it twice.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from schemas.service import RunProgress
from trainer.errors import ConflictError
from trainer.queue import events, run_rows, slot_times
from trainer.queue.clocks import Clock
from trainer.queue.queue_records import Beat, Lease, Outcome

LEASE_S = 15.0


def start(
    connection: sqlite3.Connection, run_ids: Sequence[str], slot: str, clock: Clock
) -> Lease:
    """Put queued runs on a free slot; see `Queue.start`."""
    held = connection.execute("SELECT 1 FROM leases WHERE slot = ?", (slot,)).fetchone()
    if held is not None:
        raise ConflictError(f"slot {slot} is taken")
    if not run_ids or len(set(run_ids)) != len(run_ids):
        raise ConflictError("a pass has one run or more, and each of them once")
    rows = [run_rows.row(connection, run_id) for run_id in run_ids]
    for row in rows:
        if row["state"] != "queued":
            raise ConflictError(f"run {row['id']} is {row['state']}, and not queued")
    lease_id = secrets.token_hex(12)
    now = clock.text()
    connection.execute(
        "INSERT INTO leases (id, slot, started, boot, heartbeat)"
        " VALUES (?, ?, ?, ?, ?)",
        (lease_id, slot, now, clock.boot(), clock.monotonic()),
    )
    others = f", together with {len(rows) - 1} more" if len(rows) > 1 else ""
    for row in rows:
        connection.execute(
            "UPDATE runs SET state = 'running', lease = ?, attempts = attempts + 1,"
            " started = coalesce(started, ?) WHERE id = ?",
            (lease_id, now, row["id"]),
        )
        events.add(connection, row["id"], now, "started", f"on {slot}{others}")
    return _read(connection, _row(connection, lease_id), clock)


def take(
    connection: sqlite3.Connection,
    lease_id: str,
    pid: int,
    process_start: str | None,
    clock: Clock,
) -> bool:
    """Note the process that trains a pass; see `Queue.take`."""
    row = _row(connection, lease_id)
    if row is None or row["pid"] is not None or not _lives(row, clock):
        return False
    connection.execute(
        "UPDATE leases SET pid = ?, process_start = ?, heartbeat = ? WHERE id = ?",
        (pid, process_start, clock.monotonic(), lease_id),
    )
    return True


def heartbeat(
    connection: sqlite3.Connection,
    lease_id: str,
    progress: Mapping[str, RunProgress],
    clock: Clock,
) -> Beat:
    """Keep a lease; see `Queue.heartbeat`."""
    row = _row(connection, lease_id)
    if row is None or row["boot"] != clock.boot():
        return "lost"
    _charge(connection, row, clock)
    connection.execute(
        "UPDATE leases SET heartbeat = ? WHERE id = ?", (clock.monotonic(), lease_id)
    )
    ids = run_rows.ids_of(connection, lease_id)
    for run_id in ids:
        if run_id in progress:
            _note(connection, run_id, progress[run_id], clock)
    asked = connection.execute(
        "SELECT 1 FROM runs WHERE lease = ? AND cancelling IS NOT NULL", (lease_id,)
    ).fetchone()
    return "go on" if asked is None else "stop"


def end(
    connection: sqlite3.Connection,
    lease_id: str,
    outcomes: Mapping[str, Outcome],
    clock: Clock,
    most_losses: int,
) -> bool:
    """Give a slot back; see `Queue.end`."""
    row = _row(connection, lease_id)
    if row is None:
        return False
    if row["boot"] == clock.boot():
        _charge(connection, row, clock)
    for run_id in run_rows.ids_of(connection, lease_id):
        outcome = outcomes.get(run_id, Outcome("lost"))
        _settle(connection, run_id, outcome, clock, most_losses)
    connection.execute("DELETE FROM leases WHERE id = ?", (lease_id,))
    return True


def all_of(connection: sqlite3.Connection, clock: Clock) -> list[Lease]:
    """Return the leases that are held."""
    rows = connection.execute("SELECT * FROM leases ORDER BY slot").fetchall()
    return [_read(connection, row, clock) for row in rows]


def expired(connection: sqlite3.Connection, clock: Clock) -> list[Lease]:
    """Return the leases that nobody keeps any more."""
    rows = connection.execute("SELECT * FROM leases ORDER BY slot").fetchall()
    return [_read(connection, row, clock) for row in rows if not _lives(row, clock)]


def _row(connection: sqlite3.Connection, lease_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM leases WHERE id = ?", (lease_id,)
    ).fetchone()
    return row


def _lives(row: sqlite3.Row, clock: Clock) -> bool:
    since = clock.monotonic() - row["heartbeat"]
    # below 0: the machine has begun anew, where that cannot be told otherwise
    this_boot: bool = row["boot"] == clock.boot()
    return this_boot and 0 <= since <= LEASE_S


def _read(
    connection: sqlite3.Connection, row: sqlite3.Row | None, clock: Clock
) -> Lease:
    assert row is not None
    return Lease(
        id=row["id"],
        slot=row["slot"],
        runs=run_rows.ids_of(connection, row["id"]),
        pid=row["pid"],
        process_start=row["process_start"],
        this_boot=row["boot"] == clock.boot(),
    )


def _charge(connection: sqlite3.Connection, row: sqlite3.Row, clock: Clock) -> None:
    """Charge the time since the last heartbeat to the users of a pass' runs."""
    seconds = min(max(clock.monotonic() - row["heartbeat"], 0.0), LEASE_S)
    users = connection.execute("SELECT user FROM runs WHERE lease = ?", (row["id"],))
    runs_of = Counter(one["user"] for one in users)
    if seconds and runs_of:
        share = seconds / runs_of.total()
        charged = {user: n * share for user, n in runs_of.items()}
        slot_times.charge(connection, charged, clock.seconds())


def _note(
    connection: sqlite3.Connection, run_id: str, progress: RunProgress, clock: Clock
) -> None:
    """Note how far a run has come; what has come further has not been lost for long."""
    text = progress.model_dump_json()
    changed = connection.execute(
        "UPDATE runs SET progress = ? WHERE id = ? AND progress IS NOT ?",
        (text, run_id, text),
    )
    if not changed.rowcount:
        return
    connection.execute(
        "UPDATE runs SET furthest = ?, losses = 0 WHERE id = ? AND furthest < ?",
        (progress.step, run_id, progress.step),
    )
    told = f"step {progress.step:,}"
    if progress.steps is not None:
        told += f" of {progress.steps:,}"
    events.add(connection, run_id, clock.text(), "progress", told, progress)


def _settle(
    connection: sqlite3.Connection,
    run_id: str,
    outcome: Outcome,
    clock: Clock,
    most_losses: int,
) -> None:
    """Take a run from training to where it is next."""
    row = run_rows.row(connection, run_id)
    if outcome.kind == "completed":
        run_rows.end(connection, run_id, "completed", "finished", clock)
    elif outcome.kind == "failed":
        run_rows.end(connection, run_id, "failed", outcome.text, clock)
    elif row["cancelling"] is not None:
        text = f"cancelled by {row['cancelling']}"
        run_rows.end(connection, run_id, "cancelled", text, clock)
    elif outcome.kind == "lost":
        _lose(connection, row, outcome.text, clock, most_losses)
    else:
        apart = outcome.kind == "apart"
        text = outcome.text or "waits for its next pass"
        run_rows.queue_again(connection, run_id, "queued", text, clock, alone=apart)


def _lose(
    connection: sqlite3.Connection,
    row: sqlite3.Row,
    text: str,
    clock: Clock,
    most_losses: int,
) -> None:
    """Queue a run again whose process is gone, unless that has happened too often."""
    told = text or "its process ended without a word"
    losses = row["losses"] + 1
    connection.execute("UPDATE runs SET losses = ? WHERE id = ?", (losses, row["id"]))
    if losses >= most_losses:
        why = (
            f"{told}, {losses} times in a row without coming further; look at"
            f" its log, then resume it"
        )
        run_rows.end(connection, row["id"], "failed", why, clock)
        return
    # should it be the run that kills its process: it takes nobody with it the next time
    alone = losses > 1
    run_rows.queue_again(connection, row["id"], "lost", told, clock, alone=alone)
