"""The SQLite file of the service: connections, transactions, and plain errors.

Several processes have it open: the service, and each process that trains.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import ServiceError
from trainer.queue.migrations import migrate

NAME = "service.sqlite"
BUSY_S = 30.0  # how long a transaction waits for others


class Database:
    """Connections to the file, each of which one thread uses at a time.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, or make it; bring it to the newest version.

        Raises:
            ServiceError: It is damaged, another program's, or of a newer version.
        """
        self.path = Path(path)
        self._free: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        with _plainly(self.path):
            _make_private(self.path)
            connection = self._connect()
            with _closed_if_it_fails(connection):
                connection.execute("PRAGMA journal_mode = WAL")
                migrate(connection, str(self.path))
            self._free.append(connection)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Inside the `with`, all that is read is of one moment."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Inside the `with`, nobody else writes; all of it is written, or nothing."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Close the connections; those in use when they are given back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for connection in free:
            connection.close()

    def check(self) -> None:
        """Read the file through.

        Raises:
            ServiceError: It is damaged.
        """
        with self.reading() as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise ServiceError(_unreadable(self.path, str(found)))

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with _plainly(self.path):
            connection = self._take()
            # what has not been committed is undone as it is closed
            with _closed_if_it_fails(connection):
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        # a transaction that has ended survives a power cut
        connection.execute("PRAGMA synchronous = FULL")
        return connection


@contextmanager
def _closed_if_it_fails(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _make_private(path: Path) -> None:
    """Make the file and its folder for this user alone, where they are not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite's other files are given the permissions of this one
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Say in words what SQLite or the system cannot do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, OSError):
            told = error.strerror or str(error)
            raise ServiceError(
                f"{path}: {told}; the queue lies in --state, which must be a folder"
                " of your own on a local disk"
            ) from error
        raise ServiceError(_told(path, str(error))) from error


def _told(path: Path, told: str) -> str:
    if "is not a database" in told or "malformed" in told:
        return _unreadable(path, told)
    return f"{path}: the queue cannot be used ({told}); look at its disk"


def _unreadable(path: Path, told: str) -> str:
    last_line = told.splitlines()[-1]
    return (
        f"{path}: the queue cannot be read ({last_line}); move the file away: runs that"
        " have begun lie in their folders, and can be submitted again"
    )
