"""A folder on a local disk that keeps what was read from far away, and stays in bounds.

    data = cache.read(keys, sizes, fetch)

What is there is read with one `open` and one `pread`: no lock, no database. What is not
is fetched once, whatever the number of threads and processes that want it; the others
wait for the file. Room is reserved in the ledger before anything is written.

A cache never fails a read. Where its disk is full or refuses, bytes are fetched and not
kept, and one warning says so.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from filelock import Timeout

from actstore.cache.cache_folder import CacheFolder, Filling
from actstore.cache.ledger import (
    LEDGER_BYTES,
    CacheStatus,
    Claim,
    Ledger,
    Wanted,
)
from actstore.console.user_warnings import warn
from actstore.errors import CacheWarning, SpecError, StorageError
from actstore.format.storage import Part

Fetch = Callable[[list[int]], Sequence[Part]]
"""Gets what is not there: it takes positions of keys, and returns the bytes of each."""
Intact = Callable[[Part], bool]
"""Tells whether bytes are what they must be, by a checksum in them, say."""

# The ledger would fill a smaller one.
SMALLEST_BYTES = 2 * LEDGER_BYTES
# Of what is free on the disk, the share that a new cache takes by default.
DEFAULT_SHARE = 0.5
# Seconds to wait for a process that lives and does not deliver.
PATIENCE_S = 30.0
# Between two looks for a file that another one makes, and between two questions to the
# ledger whether it still does.
POLL_S = (0.001, 0.02)
ASK_S = 0.1
# Times of use are written with the next transaction, or after so many seconds or files.
USES_S = 15.0
MOST_USES = 400
# Seconds without a cache after its disk or its lock has failed.
REST_S = 60.0
# Keys of files that this process has compared with their digest.
MOST_CHECKED = 1 << 19

_TROUBLE = (OSError, sqlite3.Error, Timeout)


class CacheCounts(NamedTuple):
    """What this process had from a cache.

    Attributes:
        hits: How often bytes were there.
        hit_bytes: How many bytes those were.
        misses: How often they were not.
        miss_bytes: How many bytes were fetched then.
    """

    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    miss_bytes: int = 0


class LocalCache:
    """The cache in a folder, for all threads of this process.

    Other processes may use the same folder. After a fork the child goes on with it.

    Attributes:
        path: The folder, without links.
        size: The bytes that it may take, all processes together.
    """

    def __init__(self, path: str | os.PathLike[str], size: int | None = None) -> None:
        """Open a cache, or make one of a folder that is empty or not there.

        Args:
            path: The folder, on a disk of this machine.
            size: The bytes that it may take. The size given last counts for all who
                use the folder. None: as before; a new one takes half of what is free.

        Raises:
            SpecError: The folder holds something else, or the size is too small.
            StorageError: The folder cannot be used.
        """
        if size is not None:
            check_size(size)
        try:
            self._folder = CacheFolder(path)
        except OSError as error:
            raise _unusable(os.fspath(path), error) from error
        self.path = self._folder.path
        try:
            self._ledger: Ledger | None = self._new_ledger(size)
        except _TROUBLE as error:
            raise _unusable(str(self.path), error) from error
        self.size = self._ledger.size
        self._checked: set[bytes] = set()
        self._uses: dict[bytes, float] = {}
        self._uses_written = time.monotonic()
        self._filled: list[Filling] = []
        self._abandoned: list[Filling] = []
        self._counts = [0, 0, 0, 0]
        self._rests_until = 0.0
        self._warned: set[str] = set()
        # Held while the ledger is used.
        self._turn = threading.Lock()
        self._closed = False
        _open_caches.add(self)
        self._tell_of_size(self._ledger)

    def __repr__(self) -> str:
        return f"LocalCache({str(self.path)!r}, {self.size:,} bytes)"

    def close(self) -> None:
        """Write what is not written yet; from now on all is fetched."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            _open_caches.discard(self)
            if self._ledger is not None:
                try:
                    self._ledger.settle(self._filled, self._abandoned, self._uses)
                    self._ledger.close()
                except _TROUBLE:
                    pass  # the next process compares ledger and files

    @property
    def counts(self) -> CacheCounts:
        """What this process had from the cache so far."""
        return CacheCounts(*self._counts)

    def status(self) -> CacheStatus:
        """Return what the cache holds.

        Raises:
            StorageError: The ledger cannot be read.
        """
        try:
            with self._turn:
                self._settle()
                return self._opened().status()
        except _TROUBLE as error:
            raise _unusable(str(self.path), error) from error

    def resize(self, size: int) -> None:
        """Give the cache another size, for all processes.

        Raises:
            SpecError: It is too small.
            StorageError: The ledger cannot be written.
        """
        check_size(size)
        try:
            with self._turn:
                self._opened().resize(size)
        except _TROUBLE as error:
            raise _unusable(str(self.path), error) from error
        self.size = size

    def clear(self) -> None:
        """Remove all files that no process is making.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            with self._turn:
                self._settle()
                self._opened().clear()
        except _TROUBLE as error:
            raise _unusable(str(self.path), error) from error

    def read(
        self,
        keys: Sequence[bytes],
        sizes: Sequence[int],
        fetch: Fetch,
        intact: Intact = lambda _: True,
    ) -> list[Part]:
        """Return the bytes of some keys, fetched where they are not there.

        Args:
            keys: A digest of 32 bytes for each, which only these bytes can have.
            sizes: How many bytes each has. What is fetched and has more or fewer is
                given back, but not kept.
            fetch: Gets what is not there. It is called from this thread; what it
                raises comes through.
            intact: Tells whether bytes are right. What is fetched and is not is given
                back, but not kept; what is kept and is not is fetched again.
        """
        if self._closed:
            return list(fetch(list(range(len(keys)))))
        found: list[Part | None] = [
            self._hit(Wanted(*one), intact) for one in zip(keys, sizes, strict=True)
        ]
        missing = [i for i, data in enumerate(found) if data is None]
        if missing:
            wanted = [Wanted(*one) for one in zip(keys, sizes, strict=True)]
            self._fill(wanted, missing, found, fetch, intact)
        elif self._uses_are_due():
            self._write()
        return [data for data in found if data is not None]

    def _hit(self, wanted: Wanted, intact: Intact) -> bytes | None:
        """Return what is kept under a key; None where nothing is, or it is damaged."""
        key, size = wanted
        first = key not in self._checked
        try:
            data = self._folder.read(key, size, checked=first)
            if data is not None and not intact(data):
                raise ValueError("its checksum does not match")
        except ValueError as error:
            self._drop(key, error)
            return None
        except OSError as error:
            self._tell("read", f"it cannot be read ({error.strerror})")
            return None
        if data is None:
            return None
        if first:
            self._note_checked(key)
        self._uses[key] = time.time()
        self._counts[0] += 1
        self._counts[1] += size
        return data

    def _fill(
        self,
        wanted: Sequence[Wanted],
        missing: list[int],
        found: list[Part | None],
        fetch: Fetch,
        intact: Intact,
    ) -> None:
        """Get what is missing, or wait for those who get it, into `found`."""
        patient_until = time.monotonic() + PATIENCE_S
        while missing:
            claims = self._claim([wanted[i] for i in missing])
            by_claim: dict[Claim, list[int]] = {claim: [] for claim in Claim}
            for i, claim in zip(missing, claims, strict=True):
                by_claim[claim].append(i)
            others = by_claim[Claim.OTHERS]
            if others and time.monotonic() > patient_until:
                by_claim[Claim.NO_ROOM] += others
                others = []
            for i in by_claim[Claim.THERE]:
                found[i] = self._hit(wanted[i], intact)
                if found[i] is None:
                    by_claim[Claim.NO_ROOM].append(i)
            mine = by_claim[Claim.MINE]
            to_fetch = sorted(mine + by_claim[Claim.NO_ROOM])
            if to_fetch:
                self._fetch(wanted, to_fetch, set(mine), found, fetch, intact)
                patient_until = time.monotonic() + PATIENCE_S
            missing = self._wait(wanted, others, found, intact)

    def _fetch(
        self,
        wanted: Sequence[Wanted],
        positions: list[int],
        mine: set[int],
        found: list[Part | None],
        fetch: Fetch,
        intact: Intact,
    ) -> None:
        """Fetch bytes, and keep those whose room this process has reserved."""
        reserved = {i: self._filling(wanted[i]) for i in mine}
        filled = []
        try:
            for i, data in zip(positions, fetch(positions), strict=True):
                found[i] = data
                self._counts[2] += 1
                self._counts[3] += len(data)
                fits = i in mine and len(data) == wanted[i].size
                if fits and intact(data) and self._write_file(reserved[i], data):
                    filled.append(reserved.pop(i))
        finally:
            self._settle_with(filled, list(reserved.values()))

    def _wait(
        self,
        wanted: Sequence[Wanted],
        others: list[int],
        found: list[Part | None],
        intact: Intact,
    ) -> list[int]:
        """Wait a little for files that others make; return those still missing."""
        pause, longest_pause = POLL_S
        until = time.monotonic() + ASK_S
        while others:
            for i in others:
                found[i] = self._hit(wanted[i], intact)
            others = [i for i in others if found[i] is None]
            if not others or time.monotonic() > until:
                break
            time.sleep(pause)
            pause = min(2 * pause, longest_pause)
        return others

    def _claim(self, wanted: Sequence[Wanted]) -> list[Claim]:
        """Ask the ledger who gets what; where it cannot be asked nothing is kept."""
        if time.monotonic() < self._rests_until:
            return [Claim.NO_ROOM] * len(wanted)
        once = {one.key: one for one in wanted}
        try:
            with self._turn:
                self._settle()
                answered = self._opened().claim(list(once.values()))
                claims = dict(zip(once, answered, strict=True))
        except _TROUBLE as error:
            self._rest(error)
            return [Claim.NO_ROOM] * len(wanted)
        answers = []
        for one in wanted:
            claim = claims[one.key]
            answers.append(claim)
            # A key that is there twice is fetched once.
            if claim is Claim.MINE:
                claims[one.key] = Claim.OTHERS
        return answers

    def _write_file(self, filling: Filling, data: Part) -> bool:
        """Write a file whose room is reserved; return whether it was written."""
        try:
            self._folder.fill(filling, data)
        except FileNotFoundError:
            return False  # someone removed the folder's files
        except OSError as error:
            self._rest(error)
            return False
        self._note_checked(filling.key)
        return True

    def _filling(self, wanted: Wanted) -> Filling:
        assert self._ledger is not None
        return Filling(wanted.key, wanted.size, self._ledger.owner)

    def _settle_with(self, filled: list[Filling], abandoned: list[Filling]) -> None:
        """Tell the ledger what became of reservations, now or with the next turn."""
        if filled or abandoned:
            with self._turn:
                self._filled += filled
                self._abandoned += abandoned
            self._write()

    def _write(self) -> None:
        """Write to the ledger what is due."""
        try:
            with self._turn:
                self._settle()
        except _TROUBLE as error:
            self._rest(error)

    def _settle(self) -> None:
        """Write to the ledger what is due; the turn is this thread's."""
        if not (self._filled or self._abandoned or self._uses):
            return
        # Other threads go on noting uses meanwhile.
        uses = {key: self._uses.pop(key) for key in list(self._uses)[:MOST_USES]}
        self._opened().settle(self._filled, self._abandoned, uses)
        self._filled.clear()
        self._abandoned.clear()
        self._uses_written = time.monotonic()

    def _uses_are_due(self) -> bool:
        """Return whether times of use have waited long enough to be written."""
        late = time.monotonic() - self._uses_written > USES_S
        resting = time.monotonic() < self._rests_until
        return (late or len(self._uses) >= MOST_USES) and not resting

    def _opened(self) -> Ledger:
        """Return the ledger, opened again in a child after a fork."""
        if self._closed:
            raise OSError("the cache is closed")
        if self._ledger is None:
            self._ledger = self._new_ledger(None)
        return self._ledger

    def _new_ledger(self, size: int | None) -> Ledger:
        default = int(self._folder.free_bytes() * DEFAULT_SHARE)
        return Ledger(self._folder, size, max(SMALLEST_BYTES, default))

    def _tell_of_size(self, ledger: Ledger) -> None:
        """Warn where other processes had another size, which no longer holds."""
        if ledger.size_of_others is not None:
            warn(
                f"cache {self.path}: other processes use it with"
                f" {ledger.size_of_others:,} bytes; from now on it has"
                f" {ledger.size:,} for all of them",
                CacheWarning,
            )

    def _drop(self, key: bytes, error: ValueError) -> None:
        """Remove a file that is damaged; it is then fetched again."""
        self._tell(
            "damaged", f"a file was damaged ({error}), and is fetched again", rest=False
        )
        try:
            with self._turn:
                self._opened().forget(key)
        except _TROUBLE as trouble:
            self._rest(trouble)

    def _note_checked(self, key: bytes) -> None:
        if len(self._checked) >= MOST_CHECKED:
            self._checked.clear()
        self._checked.add(key)

    def _rest(self, error: Exception) -> None:
        """Keep nothing more for a while, since the disk or the lock fails."""
        self._rests_until = time.monotonic() + REST_S
        self._tell("disk", _what(error))

    def _tell(self, what: str, text: str, *, rest: bool = True) -> None:
        """Warn of something once."""
        if what not in self._warned and not self._closed:
            self._warned.add(what)
            then = "; reading goes on without it" if rest else ""
            warn(f"cache {self.path}: {text}{then}", CacheWarning)

    def _after_fork(self) -> None:
        """Begin anew in a child: the parent's ledger and lock are not its own."""
        self._turn = threading.Lock()
        self._filled, self._abandoned = [], []
        self._uses = {}
        if self._ledger is not None:
            _of_parents.append(self._ledger.after_fork())
            self._ledger = None


def check_size(size: int) -> None:
    """Raise SpecError for a size that no cache can have."""
    if size < SMALLEST_BYTES:
        raise SpecError(
            f"cache_size (--cache-size): wanted at least {SMALLEST_BYTES:,} bytes, got"
            f" {size:,}; a cache of activations is of use from a few GB on"
        )


def _unusable(path: str, error: Exception) -> StorageError:
    return StorageError(
        f"cache {path}: {_what(error)}; choose another folder, or leave the cache out"
    )


def _what(error: Exception) -> str:
    """Return in a few words what the disk, the ledger or its lock refuses."""
    if isinstance(error, Timeout):
        return "another process holds its lock and does not go on"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


# Not closed in a child: that would disturb the parent's.
_of_parents: list[Any] = []
_open_caches: weakref.WeakSet[LocalCache] = weakref.WeakSet()


def _begin_anew(caches: Iterable[LocalCache]) -> None:
    for cache in list(caches):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _begin_anew(_open_caches))
