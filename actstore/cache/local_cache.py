"""A folder on a local disk that keeps what was read from far away, and stays in bounds.

    data = cache.read(keys, sizes, fetch)

What is there is read with one `open` and one `pread`: no lock, no database. What is not
is fetched once, whatever the number of threads and processes that want it; the others
wait for the file. Room is reserved in the ledger before anything is written.

A cache never fails a read. Where its disk is full or refuses, bytes are fetched and not
kept, and one warning says so.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from filelock import Timeout

from actstore.cache.cache_folder import CacheFolder, Filling
from actstore.cache.ledger import SMALLEST_BYTES, CacheStatus, Claim, Wanted
from actstore.cache.ledger_desk import TROUBLE, LedgerDesk
from actstore.console.user_warnings import warn
from actstore.errors import CacheWarning, SpecError, StorageError
from actstore.format.storage import Part

Fetch = Callable[[list[int]], Sequence[Part]]
"""Gets what is not there: it takes positions of keys, and returns the bytes of each."""
Intact = Callable[[Part], bool]
"""Tells whether bytes are what they must be, by a checksum in them, say."""

# Seconds to wait for a process that lives and does not deliver; and for how long such
# processes are waited for no more, since what one of them has begun is many files.
PATIENCE_S = 30.0
IMPATIENCE_S = 60.0
# Between two looks for a file that another one makes, and between two questions to the
# ledger whether it still does.
POLL_S = (0.001, 0.02)
ASK_S = 0.1
# Keys of files that this process has compared with their head.
MOST_CHECKED = 1 << 19


class CacheCounts(NamedTuple):
    """Counts of what this process had from a cache.

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
        self._checked: set[bytes] = set()
        self._counts = [0, 0, 0, 0]
        self._warned: set[str] = set()
        self._impatient_until = 0.0
        try:
            self._desk = LedgerDesk(self._folder, size, self._tell_of_trouble)
        except TROUBLE as error:
            raise _unusable(str(self.path), error) from error
        ledger = self._desk.opened()
        self.size = ledger.size
        _open_caches.add(self)
        if ledger.size_of_others is not None:
            warn(
                f"cache {self.path}: other processes use it with"
                f" {ledger.size_of_others:,} bytes; from now on it has"
                f" {ledger.size:,} for all of them",
                CacheWarning,
            )

    def __repr__(self) -> str:
        return f"LocalCache({str(self.path)!r}, {self.size:,} bytes)"

    def close(self) -> None:
        """Write what is not written yet; from now on all is fetched."""
        _open_caches.discard(self)
        self._desk.close()

    @property
    def counts(self) -> CacheCounts:
        """Counts of what this process had from the cache so far."""
        return CacheCounts(*self._counts)

    def status(self) -> CacheStatus:
        """Return what the cache holds.

        Raises:
            StorageError: The ledger cannot be read.
        """
        with self._trouble_raised():
            return self._desk.status()

    def resize(self, size: int) -> None:
        """Give the cache another size, for all processes.

        Raises:
            SpecError: It is too small.
            StorageError: The ledger cannot be written.
        """
        check_size(size)
        with self._trouble_raised():
            self._desk.resize(size)
        self.size = size

    def clear(self) -> None:
        """Remove all files that no process is making.

        Raises:
            StorageError: The disk refuses.
        """
        with self._trouble_raised():
            self._desk.clear()

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
        if self._desk.closed:
            return list(fetch(list(range(len(keys)))))
        found: list[Part | None] = [
            self._hit(Wanted(*one), intact) for one in zip(keys, sizes, strict=True)
        ]
        missing = [i for i, data in enumerate(found) if data is None]
        if missing:
            wanted = [Wanted(*one) for one in zip(keys, sizes, strict=True)]
            self._fill(wanted, missing, found, fetch, intact)
        else:
            self._desk.write_if_due()
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
        self._desk.note_use(key)
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
        patient_until = self._patient_until()
        while missing:
            claims = self._desk.claim([wanted[i] for i in missing])
            by_claim: dict[Claim, list[int]] = {claim: [] for claim in Claim}
            for i, claim in zip(missing, claims, strict=True):
                by_claim[claim].append(i)
            others = by_claim[Claim.OTHERS]
            if others and time.monotonic() > patient_until:
                by_claim[Claim.NO_ROOM] += others
                others = []
                self._impatient_until = time.monotonic() + IMPATIENCE_S
            for i in by_claim[Claim.THERE]:
                found[i] = self._hit(wanted[i], intact)
                if found[i] is None:
                    by_claim[Claim.NO_ROOM].append(i)
            mine = by_claim[Claim.MINE]
            to_fetch = sorted(mine + by_claim[Claim.NO_ROOM])
            if to_fetch:
                self._fetch(wanted, to_fetch, set(mine), found, fetch, intact)
                patient_until = self._patient_until()
            missing = self._wait(wanted, others, found, intact)

    def _patient_until(self) -> float:
        """Return until when others are waited for."""
        now = time.monotonic()
        return now + (ASK_S if now < self._impatient_until else PATIENCE_S)

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
        reserved = {i: self._desk.filling(wanted[i]) for i in mine}
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
            self._desk.settle(filled, list(reserved.values()))

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

    def _write_file(self, filling: Filling, data: Part) -> bool:
        """Write a file whose room is reserved; return whether it was written."""
        try:
            self._folder.fill(filling, data)
        except FileNotFoundError:
            return False  # someone removed the folder's files
        except OSError as error:
            self._desk.rest(error)
            return False
        self._note_checked(filling.key)
        return True

    def _drop(self, key: bytes, error: ValueError) -> None:
        """Remove a file that is damaged; it is then fetched again."""
        self._tell(
            "damaged", f"a file was damaged ({error}), and is fetched again", rest=False
        )
        self._desk.forget(key)

    def _note_checked(self, key: bytes) -> None:
        if len(self._checked) >= MOST_CHECKED:
            self._checked.clear()
        self._checked.add(key)

    def _tell_of_trouble(self, error: Exception) -> None:
        self._tell("disk", _what(error))

    @contextlib.contextmanager
    def _trouble_raised(self) -> Iterator[None]:
        """Raise what disk, ledger and lock raise as a StorageError."""
        try:
            yield
        except TROUBLE as error:
            raise _unusable(str(self.path), error) from error

    def _tell(self, what: str, text: str, *, rest: bool = True) -> None:
        """Warn of something once."""
        if what not in self._warned and not self._desk.closed:
            self._warned.add(what)
            then = "; reading goes on without it" if rest else ""
            warn(f"cache {self.path}: {text}{then}", CacheWarning)


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


_open_caches: weakref.WeakSet[LocalCache] = weakref.WeakSet()


def _begin_anew(caches: Iterable[LocalCache]) -> None:
    for cache in list(caches):
        cache._desk.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _begin_anew(_open_caches))
