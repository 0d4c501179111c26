"""The one place where the threads of a process come to the ledger, in turn.

What need not be written at once waits for the next turn: times of use, and what became
of reservations where the disk refused. Where disk, ledger or lock fail, the cache rests
for a while: nothing is asked, and nothing is kept.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from filelock import Timeout

from actstore.cache.cache_folder import CacheFolder, Filling
from actstore.cache.ledger import SMALLEST_BYTES, CacheStatus, Claim, Ledger, Wanted

# Of what is free on the disk, the share that a new cache takes by default.
DEFAULT_SHARE = 0.5
# Times of use are written with the next transaction, or after so many seconds or files.
USES_S = 15.0
MOST_USES = 400
# Seconds without a cache after its disk or its lock has failed.
REST_S = 60.0

TROUBLE = (OSError, sqlite3.Error, Timeout)
"""The errors of a disk, a ledger and a lock that fail."""

# Not closed in a child after a fork: that would disturb the parent's.
_of_parents: list[Any] = []


class LedgerDesk:
    """A cache's ledger for all threads of a process.

    Attributes:
        closed: Whether the cache is closed.
    """

    def __init__(
        self,
        folder: CacheFolder,
        size: int | None,
        tell: Callable[[Exception], None],
    ) -> None:
        """Open the ledger.

        Args:
            folder: The cache's folder.
            size: The bytes that it may take; None: as before.
            tell: Is told of trouble, each time that a rest begins.

        Raises:
            OSError, sqlite3.Error, Timeout: It cannot be opened.
        """
        self._folder = folder
        self._tell = tell
        self._turn = threading.Lock()
        self._uses: dict[bytes, float] = {}
        self._uses_written = time.monotonic()
        self._filled: list[Filling] = []
        self._abandoned: list[Filling] = []
        self._rests_until = 0.0
        self.closed = False
        self._ledger: Ledger | None = self._new_ledger(size)

    def opened(self) -> Ledger:
        """Return the ledger, opened again in a child after a fork."""
        if self.closed:
            raise OSError("the cache is closed")
        if self._ledger is None:
            self._ledger = self._new_ledger(None)
        return self._ledger

    def close(self) -> None:
        """Write what waits, and close the ledger."""
        with self._turn:
            if self.closed:
                return
            try:
                if self._ledger is not None:
                    self._settle()
                    self._ledger.close()
            except TROUBLE:
                pass  # the next process compares ledger and files
            self.closed = True

    def claim(self, wanted: Sequence[Wanted]) -> list[Claim]:
        """Ask who gets what; where the ledger cannot be asked, nothing is kept."""
        once = {one.key: one for one in wanted}
        try:
            if self._rests:
                return [Claim.NO_ROOM] * len(wanted)
            with self._turn:
                self._settle()
                answered = self.opened().claim(list(once.values()))
        except TROUBLE as error:
            self.rest(error)
            return [Claim.NO_ROOM] * len(wanted)
        claims = dict(zip(once, answered, strict=True))
        answers = []
        for one in wanted:
            claim = claims[one.key]
            answers.append(claim)
            # A key that is there twice is fetched once.
            if claim is Claim.MINE:
                claims[one.key] = Claim.OTHERS
        return answers

    def filling(self, wanted: Wanted) -> Filling:
        """Return the reservation that this process has for some bytes."""
        # Also where another thread has closed it since: the reservation is gone then.
        assert self._ledger is not None
        return Filling(wanted.key, wanted.size, self._ledger.owner)

    def settle(self, filled: list[Filling], abandoned: list[Filling]) -> None:
        """Say what became of reservations, now or with the next turn."""
        if filled or abandoned:
            with self._turn:
                self._filled += filled
                self._abandoned += abandoned
            self._write()

    def note_use(self, key: bytes) -> None:
        """Note that a file is used now."""
        self._uses[key] = time.time()

    def write_if_due(self) -> None:
        """Write times of use, where they have waited long enough."""
        late = time.monotonic() - self._uses_written > USES_S
        if (late or len(self._uses) >= MOST_USES) and not self._rests:
            self._write()

    def forget(self, key: bytes) -> None:
        """Remove a file that is damaged."""
        try:
            with self._turn:
                self.opened().forget(key)
        except TROUBLE as error:
            self.rest(error)

    def resize(self, size: int) -> None:
        """Take another size, for all processes. Raises what fails."""
        with self._turn:
            self._settle()
            self.opened().resize(size)

    def clear(self) -> None:
        """Remove all files that no process is making. Raises what fails."""
        with self._turn:
            self._settle()
            self.opened().clear()

    def status(self) -> CacheStatus:
        """Return what the cache holds. Raises what fails."""
        with self._turn:
            self._settle()
            return self.opened().status()

    def rest(self, error: Exception) -> None:
        """Keep nothing for a while, since disk, ledger or lock fail."""
        self._rests_until = time.monotonic() + REST_S
        self._tell(error)

    def after_fork(self) -> None:
        """Begin anew in a child: the parent's ledger and lock are not its own."""
        self._turn = threading.Lock()
        self._filled = []
        self._abandoned = []
        self._uses = {}
        if self._ledger is not None:
            _of_parents.append(self._ledger.after_fork())
            self._ledger = None

    @property
    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def _write(self) -> None:
        """Write what waits."""
        try:
            with self._turn:
                self._settle()
        except TROUBLE as error:
            self.rest(error)

    def _settle(self) -> None:
        """Write what waits; the turn is this thread's."""
        if not (self._filled or self._abandoned or self._uses):
            return
        # Other threads go on noting uses meanwhile.
        uses = {key: self._uses.pop(key) for key in list(self._uses)[:MOST_USES]}
        self.opened().settle(self._filled, self._abandoned, uses)
        self._filled.clear()
        self._abandoned.clear()
        self._uses_written = time.monotonic()

    def _new_ledger(self, size: int | None) -> Ledger:
        default = int(self._folder.free_bytes() * DEFAULT_SHARE)
        return Ledger(self._folder, size, max(SMALLEST_BYTES, default))
