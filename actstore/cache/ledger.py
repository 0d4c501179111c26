"""The ledger of a cache: which files there are, their room, and when each was used.

One SQLite database for all processes. Whoever changes it, or makes and removes files,
holds the folder's lock for that moment. So the room that is reckoned (finished files,
and those that are being made at their full size) never exceeds the cache's size.

What it says follows from the files: a ledger that is lost or damaged is made again, and
the first process of several compares it with them.
"""

from __future__ import annotations

import contextlib
import enum
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from actstore.cache.cache_folder import (
    HEAD_BYTES,
    KEY_BYTES,
    CacheFolder,
    Filling,
    cost,
)
from actstore.cache.ledger_database import (
    LedgerDatabase,
    reckon,
    totals,
    write_uses,
)
from actstore.cache.process_locks import ProcessLock, is_alive, living

# Of a cache's size, what the ledger itself may take beside a part of each entry.
LEDGER_BYTES = 8 << 20
# The ledger would fill a smaller one.
SMALLEST_BYTES = 2 * LEDGER_BYTES
# Room is made for more than is wanted now, so that it is not made each time.
LOW_WATERMARK = 0.95
EVICTED_TOGETHER = 64


class Claim(enum.Enum):
    """The next step for bytes that a process did not find."""

    MINE = "room is reserved: this process gets and keeps them"
    OTHERS = "a process that lives gets them now"
    THERE = "they are there by now"
    NO_ROOM = "whoever wants them gets them, and nobody keeps them"


class Wanted(NamedTuple):
    """Bytes that are wanted: their key, and how many they are."""

    key: bytes
    size: int


class CacheStatus(NamedTuple):
    """The contents of a cache, in numbers.

    Attributes:
        size: The bytes that it may take.
        reckoned: The bytes that it takes, with what is reserved and the ledger.
        files: The number of its files.
        fillings: The number of those that are being made.
    """

    size: int
    reckoned: int
    files: int
    fillings: int


class Ledger:
    """The ledger of a folder, open. Not for several threads at once.

    Methods raise OSError, sqlite3.Error or `filelock.Timeout` where the disk or another
    process does not let them.

    Attributes:
        owner: The name that this process has in it.
        size: The bytes that the cache may take.
        size_of_others: What processes that use the cache had taken for its size, where
            that was another one.
    """

    def __init__(self, folder: CacheFolder, size: int | None, default: int) -> None:
        """Open the ledger, or make it.

        Args:
            folder: The cache's folder.
            size: The bytes that the cache may take; None: as before.
            default: The size of a cache that had none before.
        """
        self._folder = folder
        self._database = LedgerDatabase(folder, self._fill)
        self.size = size or default
        self.size_of_others: int | None = None
        # Once, so that of several processes that begin together one is the first.
        with self._database.lock:
            others = living(folder.processes)
            self._process = ProcessLock(folder.processes)
            self.owner = self._process.owner
            try:
                self._database.run(lambda rows: self._begin(rows, size, others))
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the ledger; what this process had reserved is free again."""
        self._database.close()
        with self._database.lock:
            self._process.close()

    def after_fork(self) -> sqlite3.Connection | None:
        """Let go of the parent's ledger in a child, which must not use it.

        Returns the connection: whoever closes it disturbs the parent.
        """
        self._process.forget()
        return self._database.connection

    def resize(self, size: int) -> None:
        """Take another size, for all processes; remove what is too much."""
        self._database.run(lambda rows: self._resize(rows, size))

    def claim(self, wanted: Sequence[Wanted]) -> list[Claim]:
        """Say who gets what was not found, each key once; reserve room for it.

        Others may wait for what this process reserves, until it says by `settle` what
        became of it.
        """
        begun: list[Filling] = []

        def claim_all(rows: sqlite3.Connection) -> list[Claim]:
            self._undo(begun)  # of a first try, with a ledger that was damaged
            return [self._claim(rows, one, begun) for one in wanted]

        try:
            return self._database.run(claim_all)
        except BaseException:
            with contextlib.suppress(OSError):
                self._undo(begun)
            raise

    def settle(
        self,
        filled: Sequence[Filling],
        abandoned: Sequence[Filling],
        uses: Mapping[bytes, float],
    ) -> None:
        """Note which files were made, and free the room of those that were not."""

        def settle_all(rows: sqlite3.Connection) -> None:
            for filling in filled:
                self._finish(rows, filling)
            for filling in abandoned:
                self._take_back(rows, filling)
            write_uses(rows, uses)

        self._database.run(settle_all)

    def forget(self, key: bytes) -> None:
        """Remove a file that is damaged."""

        def remove(rows: sqlite3.Connection) -> None:
            self._remove(rows, key)
            # Whoever made it may not have said so yet.
            self._folder.drop(key)

        self._database.run(remove)

    def clear(self) -> None:
        """Remove all files that are not being made."""
        self._database.run(lambda rows: self._evict(rows, -1))

    def status(self) -> CacheStatus:
        """Return what the cache holds."""

        def counted(rows: sqlite3.Connection) -> CacheStatus:
            size, reckoned = totals(rows)
            (files,) = rows.execute("SELECT count(*) FROM files").fetchone()
            (fillings,) = rows.execute("SELECT count(*) FROM fillings").fetchone()
            return CacheStatus(size, reckoned + LEDGER_BYTES, files, fillings)

        return self._database.run(counted)

    def _fill(self, rows: sqlite3.Connection) -> None:
        """Write the rows of a new ledger."""
        size = self._size_before(self.size)
        rows.execute("INSERT INTO cache VALUES (1, ?, 0)", (size,))
        self._compare(rows)

    def _begin(
        self, rows: sqlite3.Connection, size: int | None, others: set[str]
    ) -> None:
        """Take over the size that was asked for, and what is left of who died."""
        if not others:
            self._compare(rows)
        in_ledger, _ = totals(rows)
        before = self._size_before(in_ledger)
        self._resize(rows, size or before)
        if others and self.size != before:
            self.size_of_others = before

    def _size_before(self, otherwise: int) -> int:
        """Return the size that was given last, where the folder says it."""
        size = self._folder.read_size()
        return size if size and size >= SMALLEST_BYTES else otherwise

    def _resize(self, rows: sqlite3.Connection, size: int) -> None:
        if self._folder.read_size() != size:
            self._folder.write_size(size)
        rows.execute("UPDATE cache SET size = ?", (size,))
        self.size = size
        # also where it is as before: files may have come to light
        self._make_room(rows, 0)

    def _compare(self, rows: sqlite3.Connection) -> None:
        """Make all rows anew from the files; the ledger says when each was used."""
        uses = dict(rows.execute("SELECT key, used FROM files"))
        files, fillings = self._folder.kept()
        rows.execute("DELETE FROM files")
        rows.execute("DELETE FROM fillings")
        now = time.time()
        reckoned = 0
        for file in files:
            used = uses.get(file.key, min(file.written, now))
            room = cost(file.size - HEAD_BYTES)
            rows.execute("INSERT INTO files VALUES (?, ?, ?)", (file.key, room, used))
            reckoned += room
        for filling in fillings:
            if is_alive(self._folder.processes, filling.owner):
                rows.execute(
                    "INSERT OR REPLACE INTO fillings VALUES (?, ?, ?)", filling
                )
                reckoned += cost(filling.size)
            else:
                self._folder.abandon(filling)
        rows.execute("UPDATE cache SET reckoned = ?", (reckoned,))

    def _claim(
        self, rows: sqlite3.Connection, wanted: Wanted, begun: list[Filling]
    ) -> Claim:
        """Return what is to be done about some bytes; reserve room for them."""
        key = wanted.key
        if rows.execute("SELECT 1 FROM files WHERE key = ?", (key,)).fetchone():
            if self._folder.has(key):
                return Claim.THERE
            # Someone removed it.
            self._remove(rows, key)
        earlier = self._filling(rows, key)
        if earlier is not None:
            if is_alive(self._folder.processes, earlier.owner):
                return Claim.OTHERS
            if self._take_back(rows, earlier):
                return Claim.THERE
        if not self._make_room(rows, cost(wanted.size)):
            return Claim.NO_ROOM
        filling = Filling(key, wanted.size, self.owner)
        self._folder.begin(filling)
        begun.append(filling)
        rows.execute("INSERT INTO fillings VALUES (?, ?, ?)", filling)
        reckon(rows, cost(wanted.size))
        return Claim.MINE

    def _filling(self, rows: sqlite3.Connection, key: bytes) -> Filling | None:
        found = rows.execute(
            "SELECT key, size, owner FROM fillings WHERE key = ?", (key,)
        ).fetchone()
        return None if found is None else Filling(*found)

    def _finish(self, rows: sqlite3.Connection, filling: Filling) -> None:
        """Note a file that was made, in place of its reservation."""
        # Another process may have made the ledger again, from the finished file.
        if self._filling(rows, filling.key) != filling:
            return
        rows.execute("DELETE FROM fillings WHERE key = ?", (filling.key,))
        rows.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
            (filling.key, cost(filling.size), time.time()),
        )

    def _take_back(self, rows: sqlite3.Connection, filling: Filling) -> bool:
        """Free the room of a filling; return whether its file was made after all."""
        # Only then: who made the file died before it could say so.
        made = self._folder.abandon(filling)
        if self._filling(rows, filling.key) != filling:
            return made
        if made:
            self._finish(rows, filling)
            return True
        rows.execute("DELETE FROM fillings WHERE key = ?", (filling.key,))
        reckon(rows, -cost(filling.size))
        return False

    def _make_room(self, rows: sqlite3.Connection, wanted: int) -> bool:
        """Remove files until `wanted` bytes fit; return whether they do.

        First goes what processes that died had reserved, then what was used longest
        ago.
        """
        size, reckoned = totals(rows)
        most = _most(size)
        if reckoned + wanted <= most:
            return True
        if wanted > most:
            return False
        self._take_back_of_the_dead(rows)
        self._evict(rows, min(most - wanted, int(most * LOW_WATERMARK)))
        _, reckoned = totals(rows)
        return reckoned + wanted <= most

    def _take_back_of_the_dead(self, rows: sqlite3.Connection) -> None:
        alive = living(self._folder.processes)
        found = rows.execute("SELECT key, size, owner FROM fillings").fetchall()
        for filling in (Filling(*values) for values in found):
            if filling.owner not in alive:
                self._take_back(rows, filling)

    def _evict(self, rows: sqlite3.Connection, most: int) -> None:
        """Remove the files used longest ago, until at most some bytes are reckoned."""
        # What a clock that ran ahead has written would else stay until it is that late.
        now = time.time()
        rows.execute("UPDATE files SET used = ? WHERE used > ?", (now, now))
        while totals(rows)[1] > most:
            oldest = rows.execute(
                "SELECT key FROM files ORDER BY used LIMIT ?", (EVICTED_TOGETHER,)
            ).fetchall()
            if not oldest:
                return
            for (key,) in oldest:
                self._remove(rows, key)
                if totals(rows)[1] <= most:
                    return

    def _remove(self, rows: sqlite3.Connection, key: bytes) -> None:
        """Remove a file and its row."""
        found = rows.execute("SELECT cost FROM files WHERE key = ?", (key,)).fetchone()
        if found is None:
            return
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise sqlite3.DatabaseError("a key that is none")
        # The file first: bytes are free before anyone can reserve them again.
        self._folder.drop(key)
        rows.execute("DELETE FROM files WHERE key = ?", (key,))
        reckon(rows, -found[0])

    def _undo(self, begun: list[Filling]) -> None:
        """Remove the empty files of reservations that did not come about."""
        while begun:
            self._folder.abandon(begun.pop())


def _most(size: int) -> int:
    """Return the bytes that files may take in a cache of a size."""
    return size - LEDGER_BYTES
