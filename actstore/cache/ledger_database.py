"""The database of a cache's ledger: opened, made again where it is lost or damaged.

Every change is one transaction under the folder's lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from actstore.cache.cache_folder import CacheFolder

Result = TypeVar("Result")

# Seconds to wait for the folder's lock, which is held for milliseconds. Who gets none
# goes on without the cache for a while: a process that was stopped may hold it.
LOCK_S = 5.0
LOCK_POLL_S = 0.002
VERSION = 1
_TABLES = (
    """CREATE TABLE cache (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        size INTEGER NOT NULL,
        reckoned INTEGER NOT NULL)""",
    """CREATE TABLE files (
        key BLOB PRIMARY KEY,
        cost INTEGER NOT NULL,
        used REAL NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX files_by_use ON files (used)",
    """CREATE TABLE fillings (
        key BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        owner TEXT NOT NULL) WITHOUT ROWID""",
    f"PRAGMA user_version = {VERSION}",
)
# What SQLite says where not the ledger is at fault, but the disk. A ledger that is
# locked is none of ours: who writes to those holds the folder's lock.
_NO_DAMAGE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
}
_PRAGMAS = (
    "journal_mode = WAL",
    # After a crash of the machine the ledger may be old or damaged. It is made again.
    "synchronous = OFF",
    "wal_autocheckpoint = 200",
    "journal_size_limit = 1048576",
)


class LedgerDatabase:
    """The ledger that a folder has now. Not for several threads at once.

    Attributes:
        lock: Held by who changes files or ledger; may be taken again by who has it.
    """

    def __init__(
        self, folder: CacheFolder, fill: Callable[[sqlite3.Connection], None]
    ) -> None:
        """Open nothing yet.

        Args:
            folder: The cache's folder.
            fill: Writes the rows of a ledger that is new.
        """
        self.lock = FileLock(
            folder.lock, timeout=LOCK_S, poll_interval=LOCK_POLL_S, mode=0o666
        )
        self._folder = folder
        self._fill = fill
        self._connection: sqlite3.Connection | None = None
        self._path: Path | None = None

    @property
    def connection(self) -> sqlite3.Connection | None:
        """The connection to the database, where it is open."""
        return self._connection

    def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do some work in one transaction, again where the ledger was damaged."""
        self._folder.check_there()
        with self.lock:
            try:
                return self._transaction(work)
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                self.close()
                self._folder.new_ledger()
                return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        rows = self._opened()
        rows.execute("BEGIN IMMEDIATE")
        try:
            result = work(rows)
            rows.execute("COMMIT")
        except BaseException:
            if rows.in_transaction:
                rows.execute("ROLLBACK")
            raise
        return result

    def _opened(self) -> sqlite3.Connection:
        """Return the connection to the ledger that is there now."""
        if self._connection is not None and self._path is not None:
            # What was removed nobody else sees.
            if self._path.exists():
                return self._connection
            self.close()
        path = self._folder.ledger() or self._folder.new_ledger()
        # Several threads have it in turn.
        connection = sqlite3.connect(
            path, timeout=1, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._path = path
        return connection

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables of a new ledger, filled from the files that there are."""
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == VERSION:
            totals(connection)
            return
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            raise sqlite3.DatabaseError("not a ledger of this version")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in _TABLES:
                connection.execute(statement)
            self._fill(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def _is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error means that the ledger has to be made again."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return True
    # The lower 8 bits are the kind of an extended code.
    return code & 0xFF not in _NO_DAMAGE


def totals(rows: sqlite3.Connection) -> tuple[int, int]:
    """Return the cache's size, and the bytes reckoned for files."""
    found = rows.execute("SELECT size, reckoned FROM cache").fetchone()
    whole = found is not None and all(isinstance(value, int) for value in found)
    if not whole or min(found) < 0:
        raise sqlite3.DatabaseError("the ledger has no totals")
    size, reckoned = found
    return size, reckoned


def reckon(rows: sqlite3.Connection, n_bytes: int) -> None:
    """Reckon more bytes, or fewer."""
    rows.execute("UPDATE cache SET reckoned = reckoned + ?", (n_bytes,))


def write_uses(rows: sqlite3.Connection, uses: Mapping[bytes, float]) -> None:
    """Write when files were used last."""
    rows.executemany(
        "UPDATE files SET used = ?2 WHERE key = ?1 AND used < ?2", list(uses.items())
    )
