"""The tables of the queue, and the steps from an older version to the newest.

A version is never changed once it was released: a change is one more migration. SQLite
keeps the number of the version in the file (`user_version`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from trainer.errors import ServiceError

# Each takes a database from the version before it; the first one from an empty file.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE leases (
            id TEXT PRIMARY KEY,
            slot TEXT NOT NULL UNIQUE,
            started TEXT NOT NULL,
            boot TEXT NOT NULL,
            heartbeat REAL NOT NULL,
            pid INTEGER,
            process_start TEXT
        ) STRICT
        """,
        """
        CREATE TABLE runs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            url TEXT NOT NULL UNIQUE,
            sweep TEXT,
            user TEXT NOT NULL,
            priority INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (
                state IN ('queued', 'running', 'completed', 'failed', 'cancelled')
            ),
            spec TEXT NOT NULL,
            store_url TEXT NOT NULL,
            memory_bytes INTEGER NOT NULL,
            state_bytes INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            created TEXT NOT NULL,
            started TEXT,
            ended TEXT,
            attempts INTEGER NOT NULL DEFAULT 0,
            losses INTEGER NOT NULL DEFAULT 0,
            furthest INTEGER NOT NULL DEFAULT 0,
            alone INTEGER NOT NULL DEFAULT 0 CHECK (alone IN (0, 1)),
            cancelling TEXT CHECK (cancelling IS NULL OR state = 'running'),
            lease TEXT REFERENCES leases (id),
            error TEXT,
            published TEXT,
            progress TEXT,
            CHECK ((state = 'running') = (lease IS NOT NULL)),
            CHECK ((state IN ('queued', 'running')) = (ended IS NULL))
        ) STRICT
        """,
        "CREATE INDEX runs_by_state ON runs (state, number)",
        "CREATE INDEX runs_by_user ON runs (user, number)",
        "CREATE INDEX runs_by_sweep ON runs (sweep, number)",
        "CREATE INDEX runs_by_lease ON runs (lease) WHERE lease IS NOT NULL",
        """
        CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            run TEXT NOT NULL REFERENCES runs (id),
            time TEXT NOT NULL,
            kind TEXT NOT NULL,
            text TEXT NOT NULL,
            progress TEXT
        ) STRICT
        """,
        "CREATE INDEX events_by_run ON events (run, id)",
        """
        CREATE TABLE submissions (
            user TEXT NOT NULL,
            key TEXT NOT NULL,
            digest TEXT NOT NULL,
            runs TEXT NOT NULL,
            time REAL NOT NULL,
            PRIMARY KEY (user, key)
        ) STRICT
        """,
        """
        CREATE TABLE slot_times (
            user TEXT PRIMARY KEY,
            seconds REAL NOT NULL,
            time REAL NOT NULL
        ) STRICT
        """,
    ),
)
VERSION = len(MIGRATIONS)


def migrate(
    connection: sqlite3.Connection,
    where: str,
    migrations: Sequence[Sequence[str]] = MIGRATIONS,
) -> None:
    """Bring a database to the newest version, in one transaction.

    Args:
        connection: One that begins its transactions itself (isolation level None).
        where: The database's file, for messages.
        migrations: The statements of each version.

    Raises:
        ServiceError: It is of a newer version, or another program's.
    """
    if _version(connection) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # another process may have been first
        version = _version(connection)
        _check(connection, version, where, len(migrations))
        for statements in migrations[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check(
    connection: sqlite3.Connection, version: int, where: str, newest: int
) -> None:
    if version > newest:
        raise ServiceError(
            f"{where}: its version is {version}, and this program knows versions up to"
            f" {newest}; upgrade actstore, or give another --state"
        )
    tables = connection.execute("SELECT name FROM sqlite_schema LIMIT 1").fetchone()
    if version == 0 and tables is not None:
        raise ServiceError(
            f"{where}: it is another program's database (it has {tables[0]}); give"
            " another --state"
        )
