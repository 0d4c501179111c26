"""Commits token blocks ahead of the workers that need them, many at a time.

Over a network a commit is two requests that wait for an answer each. Where a block
starts is known once the one before it was read, not only when that one is committed:
so the corpus is read on while up to 32 commits are under way. Their records come in
any order, and a reader that is killed leaves holes, which the next one fills.

Any number of readers may read at a time: all write the same bytes, and a record is
created once. That is waste only, and soon ends: see `BlockReader.steps_back`.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from actstore.harvesting.block_records import BlockRecords
from actstore.harvesting.block_source import BlockSource
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.uploads import UPLOADS_SHARE
from actstore.text.sequences import TokenBlock
from schemas.harvest import Plan

COMMITS = 32  # under way at a time, where a request waits for a network
TOKEN_BYTES = 4


class BlockReader:
    """A thread that reads the corpus on and commits the blocks that are missing.

    Attributes:
        end: The first unit that the corpus was found not to reach; None: not known.
    """

    def __init__(
        self,
        plan: Plan,
        writer: StoreWriter,
        source: BlockSource,
        records: BlockRecords,
        *,
        steps_back: bool,
    ) -> None:
        """Make it; `start` begins to read.

        Args:
            plan: The generation's plan.
            writer: Knows which blocks there are.
            source: The corpus. While this reads, nobody else does.
            records: Tell where a block starts.
            steps_back: Whether it ends where another reader was before it. Else it goes
                on behind what that one has committed.
        """
        self._plan = plan
        self._writer = writer
        self._source = source
        self._records = records
        self._steps_back = steps_back
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._was_second = threading.Event()
        self._unit = 0  # the one that is read
        self._committing: set[int] = set()
        self._n_at_once = _commits_at_once(plan, writer)
        self._room = threading.BoundedSemaphore(self._n_at_once)
        self.end: int | None = None

    def start(self, first: int) -> None:
        """Read from a unit on, in a thread, whatever it was doing.

        The block before it is committed.
        """
        self.stop()
        self._stopped.clear()
        self._was_second.clear()
        self._unit = first
        # Not kept alive by it, the process ends where its main thread does.
        self._thread = threading.Thread(
            target=self._run, args=(first,), name="blocks", daemon=True
        )
        self._thread.start()

    def commits(self, unit: int) -> bool:
        """Return whether a unit's block comes without a new start."""
        is_alive = self._thread is not None and self._thread.is_alive()
        return is_alive and (unit >= self._unit or unit in self._committing)

    def check(self) -> None:
        """Raise what reading or committing ended with, if that was an error."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until it has read to the corpus' end, or stepped back."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def stop(self) -> None:
        """End the thread, once the block that it reads is read and committed."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, first: int) -> None:
        try:
            with ThreadPoolExecutor(self._n_at_once, "commit") as pool:
                self._read_on(first, pool)
        except BaseException as error:  # noqa: BLE001 (`check` raises it)
            self._error = error

    def _read_on(self, first: int, pool: ThreadPoolExecutor) -> None:
        """Read and commit what is missing, from a unit on."""
        there = self._writer.listed_blocks()
        n_units = self._plan.layout.n_units
        unit = first
        while unit < n_units and not self._stopped.is_set():
            if unit in there:
                unit += 1
                continue
            self._unit = unit
            block = self._source.read(unit)
            if block is None:
                self.end = unit
                return
            self._commit_soon(unit, block, pool)
            unit += 1
            if block.ended:
                self.end = unit
                return
            if self._was_second.is_set():
                if self._steps_back:
                    return
                self._was_second.clear()
                unit = self._records.first_missing(unit, n_units)

    def _commit_soon(
        self, unit: int, block: TokenBlock, pool: ThreadPoolExecutor
    ) -> None:
        """Commit a block in another thread; wait where many are under way."""
        self._room.acquire()
        self._committing.add(unit)
        pool.submit(self._commit, unit, block)

    def _commit(self, unit: int, block: TokenBlock) -> None:
        try:
            if not self._source.commit(unit, block).is_first:
                self._was_second.set()
        except BaseException as error:  # noqa: BLE001 (`check` raises it)
            self._error = error
            self._stopped.set()
        finally:
            self._committing.discard(unit)
            self._room.release()


def _commits_at_once(plan: Plan, writer: StoreWriter) -> int:
    """Return how many commits are under way at a time.

    Their tokens may take the part of a harvest's memory that uploads may take too.
    """
    if writer.storage.local is not None:
        return 1
    layout = plan.layout
    block_bytes = layout.unit_sequences * layout.context * TOKEN_BYTES
    room = plan.spec.memory // UPLOADS_SHARE
    return max(1, min(COMMITS, room // block_bytes))
