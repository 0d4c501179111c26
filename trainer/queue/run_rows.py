"""The rows of runs: reading them, and taking a run from one state to another."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

from schemas.service import EventKind, RunState
from trainer.errors import UnknownRunError
from trainer.queue import events
from trainer.queue.clocks import Clock
from trainer.queue.queue_records import Page, QueuedRun, queued_run

RUN = "SELECT runs.*, leases.slot FROM runs LEFT JOIN leases ON runs.lease = leases.id"
COUNT = "SELECT count(*) FROM runs"


def row(connection: sqlite3.Connection, run_id: str) -> sqlite3.Row:
    """Return a run's row, with its slot.

    Raises:
        UnknownRunError: There is no run of this id.
    """
    found: sqlite3.Row | None = connection.execute(
        f"{RUN} WHERE runs.id = ?", (run_id,)
    ).fetchone()
    if found is None:
        raise UnknownRunError(f"there is no run {run_id!r}; `trainer runs` lists them")
    return found


def with_passes(
    connection: sqlite3.Connection, rows: Sequence[sqlite3.Row]
) -> list[QueuedRun]:
    """Return runs from their rows, with those that share their passes."""
    passes: dict[str | None, tuple[str, ...]] = {None: ()}
    for one in rows:
        lease = one["lease"]
        if lease not in passes:
            passes[lease] = ids_of(connection, lease)
    return [queued_run(one, passes[one["lease"]]) for one in rows]


def page(
    connection: sqlite3.Connection,
    where: str,
    values: Sequence[Any],
    *,
    after: str | None,
    before: str | None,
    limit: int,
) -> Page:
    """Return a page of runs, newest first; see `Queue.runs`."""
    total = connection.execute(f"{COUNT} WHERE {where}", values).fetchone()[0]
    values = list(values)
    order = "DESC" if before is None else "ASC"
    for beyond, sign in ((after, "<"), (before, ">")):
        if beyond is not None:
            where += f" AND number {sign} ?"
            values.append(row(connection, beyond)["number"])
    rows = connection.execute(
        f"{RUN} WHERE {where} ORDER BY number {order} LIMIT ?", [*values, limit + 1]
    ).fetchall()
    found = with_passes(connection, rows[:limit])
    if before is not None:
        found.reverse()
    # ahead of a run there is always more behind: at least that run
    more = found and (before is not None or len(rows) > limit)
    return Page(found, total, found[-1].id if more else None)


def ids_of(connection: sqlite3.Connection, lease: str) -> tuple[str, ...]:
    """Return the ids of a pass' runs."""
    found = connection.execute(
        "SELECT id FROM runs WHERE lease = ? ORDER BY number", (lease,)
    )
    return tuple(one["id"] for one in found)


def conditions(
    states: Sequence[RunState] | None,
    user: str | None,
    sweep: str | None,
    text: str | None,
) -> tuple[str, list[Any]]:
    """Return a filter as SQL, and its values."""
    parts, values = ["1"], list[Any]()
    if states is not None:
        parts.append(f"state IN ({', '.join('?' * len(states))})")
        values += states
    for column, value in (("user", user), ("sweep", sweep)):
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    if text:
        parts.append(
            "(instr(lower(name), lower(?)) OR instr(lower(user), lower(?))"
            " OR instr(lower(coalesce(sweep, '')), lower(?)))"
        )
        values += [text] * 3
    return " AND ".join(parts), values


def end(
    connection: sqlite3.Connection,
    run_id: str,
    state: Literal["completed", "failed", "cancelled"],
    text: str,
    clock: Clock,
) -> None:
    """Take a run to one of the states in which it has ended, and say why."""
    now = clock.text()
    connection.execute(
        "UPDATE runs SET state = ?, ended = ?, lease = NULL, cancelling = NULL,"
        " error = ? WHERE id = ?",
        (state, now, text if state == "failed" else None, run_id),
    )
    events.add(connection, run_id, now, state, text)


def queue_again(
    connection: sqlite3.Connection,
    run_id: str,
    kind: EventKind,
    text: str,
    clock: Clock,
    *,
    alone: bool,
) -> None:
    """Take a run from training back to the queue, and say why.

    alone: from now on it shares no pass.
    """
    connection.execute(
        "UPDATE runs SET state = 'queued', lease = NULL, cancelling = NULL,"
        " alone = max(alone, ?) WHERE id = ?",
        (alone, run_id),
    )
    events.add(connection, run_id, clock.text(), kind, text)


def why_no_resume(found: sqlite3.Row) -> str:
    """Return why a run cannot be resumed, in words."""
    if found["state"] == "completed":
        return f"run {found['id']} has completed: nothing to resume"
    if found["cancelling"] is not None:
        return f"run {found['id']} is being saved still; resume it when it has ended"
    return f"run {found['id']} is {found['state']}: it needs no resuming"
