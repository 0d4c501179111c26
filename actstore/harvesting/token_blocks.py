"""The token blocks of a worker's units, in order.

A block must be committed before its unit, because its record tells where in the corpus
the next one starts. A worker alone reads each block from the corpus, and commits it.
Among others one worker is the *reader*: next to its units it commits all blocks
(`block_reader.py`), and the others wait for theirs. Where nothing comes for a while,
because the reader is dead or was never started, one of them begins to read.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import ExistsError
from actstore.harvesting.block_reader import BlockReader
from actstore.harvesting.block_records import BlockRecords
from actstore.harvesting.block_source import BlockSource, missing_block
from actstore.harvesting.handed_units import HandedUnits
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker_share import Share
from actstore.text.sequences import Sequencer, TokenBlock
from schemas.harvest import Plan
from schemas.manifest import BlockRecord

# Between two looks for a block; each longer than the one before, so that a thousand
# workers that wait do not keep the storage busy.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
# Without a new block a worker waits so long, times the bits of its number, before it
# reads: the second worker 5 s, the third and fourth 10 s, the last of a thousand 50 s.
PATIENCE_S = 5.0


class CommittedBlock(NamedTuple):
    """A token block whose record is written.

    Attributes:
        record: Its record.
        tokens: int32 [n_sequences, context], -1 where there is padding; None where the
            unit is committed too, so that nobody needs them.
    """

    record: BlockRecord
    tokens: NDArray[np.int32] | None


class TokenBlocks:
    """Gives a worker the token blocks of its units.

    Attributes:
        records: The records of all blocks that are known here, by unit.
        committed_units: This worker's units that were committed when it began.
    """

    def __init__(
        self,
        plan: Plan,
        writer: StoreWriter,
        source: Sequencer | None,
        share: Share | HandedUnits,
    ) -> None:
        """Look what is committed.

        Args:
            plan: The generation's plan.
            writer: Writes blocks, and knows which there are.
            source: The corpus; None where all blocks are there (more sites).
            share: Which units are this worker's.
        """
        self._plan = plan
        self._writer = writer
        self._share = share
        # Among others a worker asks for the rest by name, where it needs one.
        own = set(share.of_plan(plan))
        wanted = None if share.is_alone else {plan.first_unit, *own}
        self.records = writer.committed_blocks(wanted)
        self.committed_units = writer.committed_units() & own if own else set()
        self._known = BlockRecords(writer, self.records, is_alone=share.is_alone)
        self._source: BlockSource | None = None
        self._reader: BlockReader | None = None
        if source is not None:
            self._source = BlockSource(plan, writer, source, self._known)
            if not share.is_alone:
                self._reader = BlockReader(
                    plan,
                    writer,
                    self._source,
                    self._known,
                    steps_back=not share.is_reader,
                )
        self._closing = threading.Event()

    def begin(self, first: TokenBlock) -> None:
        """Commit the first block, which was read before the store was made.

        Raises:
            ExistsError: An earlier call has committed another one.
        """
        assert self._source is not None
        unit = self._plan.first_unit
        record = self._known.get(unit)
        if record is None:
            self.records[unit] = self._source.commit(unit, first).record
        elif not np.array_equal(self._writer.block_tokens(record), first.tokens):
            raise ExistsError(
                f"{self._writer.storage.url}: the harvest there began on another"
                " corpus: its first tokens differ; give the same corpus to resume it,"
                " or choose another place"
            )
        self._source.has_read(unit)

    def read_ahead(self) -> Iterator[CommittedBlock]:
        """Give the blocks of this worker's units in order, to the corpus' end.

        A worker that reads for others goes on until it has read all.
        """
        if self._reader is not None and self._share.is_reader:
            self._reader.start(self._plan.first_unit + 1)
        try:
            yield from self._each_read_before()
            if self._reader is not None and not self._share.has_ended:
                self._reader.finish()
        finally:
            if self._reader is not None:
                self._reader.stop()

    def _each_read_before(self) -> Iterator[CommittedBlock]:
        """Give the blocks; a thread gets each one while the one before is used."""
        units = iter(self._share.units(self._plan))
        with ThreadPoolExecutor(1, thread_name_prefix="tokens") as pool:
            try:
                following = pool.submit(self._next, units)
                while (block := following.result()) is not None:
                    # Now, before this one is used: that is when there is time to read.
                    following = pool.submit(self._next, units)
                    yield block
            finally:
                # The thread may be waiting for another unit, or its block.
                self._share.end()
                self._closing.set()

    def _next(self, units: Iterator[int]) -> CommittedBlock | None:
        """Return the next unit's block; None: there is none."""
        for unit in units:
            block = self._block(unit)
            if block is not None or not self._share.passes_end(unit):
                return block
        return None

    def _block(self, unit: int) -> CommittedBlock | None:
        """Return a unit's block, once it is committed.

        None: the corpus ends before it, or nobody wants it any more.
        """
        parent = self._writer.parent
        if self._source is None and parent is not None and unit >= parent.n_units:
            return None
        if self._reader is not None:
            self._reader.check()
        record = self._known.get(unit)
        if record is None and self._share.is_alone:
            return self._read(unit)
        if record is None:
            record = self._awaited(unit)
        if record is None:
            return None
        if self._is_committed(unit):
            return CommittedBlock(record, None)
        return CommittedBlock(record, self._writer.block_tokens(record))

    def _is_committed(self, unit: int) -> bool:
        """Return whether the unit itself is committed, by now."""
        if unit in self.committed_units:
            return True
        return not self._share.is_alone and self._writer.is_committed(unit)

    def _read(self, unit: int) -> CommittedBlock | None:
        """Read a block from the corpus and commit it; those before it are there.

        None: the corpus has nothing left.
        """
        if self._source is None:
            raise missing_block(unit)
        block = self._source.read(unit)
        if block is None:
            return None
        self.records[unit] = self._source.commit(unit, block).record
        return CommittedBlock(self.records[unit], block.tokens)

    def _awaited(self, unit: int) -> BlockRecord | None:
        """Wait until a unit's block is committed, and return its record.

        Where no block comes for a while, this worker begins to read.

        None: the corpus ends before it, or the worker is to end.
        """
        if self._reader is None:
            raise missing_block(unit)
        front = self._plan.first_unit
        pause = FIRST_PAUSE_S
        patience = self._patience()
        moved_at = time.monotonic()
        while not (self._closing.is_set() or self._share.has_ended):
            self._reader.check()
            record = self._known.get(unit)
            if record is not None:
                return record
            missing = self._known.first_missing(front, unit)
            if self._ends_before(unit, missing):
                return None
            if missing != front:
                front, moved_at = missing, time.monotonic()
            if self._reader.commits(front):
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at >= patience:
                self._reader.start(front)
            self._closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return None

    def _ends_before(self, unit: int, missing: int) -> bool:
        """Return whether the corpus is known to end before a unit's block.

        missing: a block up to there that is missing while the one before it is there.
        """
        before = self.records.get(missing - 1)
        if missing > self._plan.first_unit and before is not None and before.last:
            return True
        end = None if self._reader is None else self._reader.end
        return end is not None and unit >= end

    def _patience(self) -> float:
        """Return the seconds without a new block after which this worker reads.

        They differ, so that not all begin at once.
        """
        bits = max(1, self._share.number.bit_length())
        return PATIENCE_S * bits * random.uniform(1, 1.2)
