"""Writes new runs into the queue, once for each key that a client sent with them."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from trainer.errors import ConflictError
from trainer.queue import events
from trainer.queue.clocks import Clock
from trainer.queue.queue_records import NewRun

# How long a key is remembered.
KEY_S = 30 * 86_400.0


class Key(NamedTuple):
    """What tells a submission from another."""

    user: str
    text: str | None
    """None: every submission is a new one."""
    digest: str
    """Of what was submitted."""


def before(connection: sqlite3.Connection, key: Key, clock: Clock) -> list[str] | None:
    """Return the runs that were submitted with a key before, None where none was.

    Raises:
        ConflictError: It came with something else.
    """
    if key.text is None:
        return None
    connection.execute(
        "DELETE FROM submissions WHERE time < ?", (clock.seconds() - KEY_S,)
    )
    row = connection.execute(
        "SELECT digest, runs FROM submissions WHERE user = ? AND key = ?",
        (key.user, key.text),
    ).fetchone()
    if row is None:
        return None
    if row["digest"] != key.digest:
        raise ConflictError(
            f"Idempotency-Key {key.text!r} was sent with another submission before; a"
            " new submission needs a new key"
        )
    ids: list[str] = json.loads(row["runs"])
    return ids


def remember(
    connection: sqlite3.Connection, key: Key, ids: Sequence[str], clock: Clock
) -> None:
    """Note which runs a submission gave."""
    if key.text is not None:
        connection.execute(
            "INSERT INTO submissions VALUES (?, ?, ?, ?, ?)",
            (key.user, key.text, key.digest, json.dumps(ids), clock.seconds()),
        )


def insert(
    connection: sqlite3.Connection,
    run: NewRun,
    user: str,
    priority: int,
    sweep: str | None,
    clock: Clock,
) -> str:
    """Write a new run; return its id.

    Raises:
        ConflictError: Its folder is another run's.
    """
    taken = connection.execute(
        "SELECT id FROM runs WHERE url = ?", (run.url,)
    ).fetchone()
    if taken is not None:
        raise ConflictError(
            f"the folder {run.url} is that of run {taken['id']}; choose another name"
        )
    run_id, now = secrets.token_hex(6), clock.text()
    own = run.memory_bytes if run.state_bytes is None else run.state_bytes
    connection.execute(
        "INSERT INTO runs (id, name, url, sweep, user, priority, state, spec,"
        " store_url, memory_bytes, state_bytes, rows, created)"
        " VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
        (
            *(run_id, run.name, run.url, sweep, user, priority),
            *(run.spec.model_dump_json(), run.store_url, run.memory_bytes, own),
            *(run.rows, now),
        ),
    )
    events.add(connection, run_id, now, "queued", f"submitted by {user}")
    return run_id
