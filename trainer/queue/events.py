"""Events of runs: what happened to them, told in order, and bounded in number."""

from __future__ import annotations

import sqlite3

from schemas.service import EventKind, RunProgress

# A run keeps its newest events of progress, and of the older ones every second, again
# and again: a history that is the thinner the older it is.
MOST_PROGRESS = 100
NEWEST_PROGRESS = 20


def add(
    connection: sqlite3.Connection,
    run: str,
    time: str,
    kind: EventKind,
    text: str,
    progress: RunProgress | None = None,
) -> None:
    """Add an event of a run."""
    connection.execute(
        "INSERT INTO events (run, time, kind, text, progress) VALUES (?, ?, ?, ?, ?)",
        (run, time, kind, text, progress.model_dump_json() if progress else None),
    )
    if kind == "progress":
        _thin(connection, run)


def behind(
    connection: sqlite3.Connection, after: int, run: str | None, limit: int
) -> list[sqlite3.Row]:
    """Return the rows of events behind one, of a run or of all, in order."""
    if run is None:
        found = connection.execute(
            "SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        )
    else:
        found = connection.execute(
            "SELECT * FROM events WHERE run = ? AND id > ? ORDER BY id LIMIT ?",
            (run, after, limit),
        )
    return found.fetchall()


def _thin(connection: sqlite3.Connection, run: str) -> None:
    rows = connection.execute(
        "SELECT id FROM events WHERE run = ? AND kind = 'progress' ORDER BY id", (run,)
    ).fetchall()
    if len(rows) <= MOST_PROGRESS:
        return
    older = rows[: len(rows) - NEWEST_PROGRESS]
    connection.executemany(
        "DELETE FROM events WHERE id = ?", [(row["id"],) for row in older[1::2]]
    )
