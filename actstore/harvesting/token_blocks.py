"""The token blocks of a worker's units, in order.

They are read from the corpus and committed, or read back from the store.

A block must be committed before its unit, because its record tells where in the corpus
the next one starts. So a worker that needs block 7 also reads blocks 5 and 6 where
nobody has committed them yet, although their units are other workers'.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorpusError, ExistsError
from actstore.harvesting.handed_units import HandedUnits
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker_share import Share
from actstore.text.sequences import END, Sequencer, TokenBlock
from schemas.harvest import Layout, Plan
from schemas.manifest import BlockRecord


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
        self._source = source
        self._share = share
        # The unit whose block the source gives next; None: not known.
        self._next_of_source: int | None = None
        # Among others a worker asks for the rest by name, where it needs one.
        own = set(share.of_plan(plan))
        wanted = None if share.is_alone else {plan.first_unit, *own}
        self.records = writer.committed_blocks(wanted)
        self.committed_units = writer.committed_units() & own if own else set()

    def begin(self, first: TokenBlock) -> None:
        """Commit the first block, which was read before the store was made.

        Raises:
            ExistsError: An earlier call has committed another one.
        """
        unit = self._plan.first_unit
        record = self.records[unit] if self._is_known(unit) else None
        if record is None:
            self._commit(unit, first)
            self._next_of_source = unit + 1
            return
        if not np.array_equal(self._writer.block_tokens(record), first.tokens):
            raise ExistsError(
                f"{self._writer.storage.url}: the harvest there began on another"
                " corpus: its first tokens differ; give the same corpus to resume it,"
                " or choose another place"
            )

    def read_ahead(self) -> Iterator[CommittedBlock]:
        """Give the blocks of this worker's units in order, to the corpus' end.

        A thread reads each one while the one before it is being used.
        """
        units = iter(self._share.units(self._plan))
        with ThreadPoolExecutor(1, thread_name_prefix="tokens") as pool:
            try:
                following = pool.submit(self._next, units)
                while (block := following.result()) is not None:
                    # Now, before this one is used: that is when there is time to read.
                    following = pool.submit(self._next, units)
                    yield block
            finally:
                # The thread may be waiting for another unit.
                self._share.end()

    def _next(self, units: Iterator[int]) -> CommittedBlock | None:
        """Return the next unit's block; None: there is none."""
        for unit in units:
            block = self._block(unit)
            if block is not None or not self._share.passes_end(unit):
                return block
        return None

    def _block(self, unit: int) -> CommittedBlock | None:
        """Return a unit's block, after committing those before it that are missing.

        None: the corpus ends before it.
        """
        parent = self._writer.parent
        if self._source is None and parent is not None and unit >= parent.n_units:
            return None
        # With blocks up to 4 known, unit 7 needs 5, 6 and 7 read.
        for missing in range(self._first_missing(unit), unit + 1):
            is_first = missing == self._plan.first_unit
            if not is_first and self.records[missing - 1].last:
                return None
            # Another worker may have committed it meanwhile.
            if self._is_known(missing):
                continue
            tokens = self._read_and_commit(missing)
            if tokens is None:
                return None
            if missing == unit:
                return CommittedBlock(self.records[unit], tokens)
        record = self.records[unit]
        if self._is_committed(unit):
            return CommittedBlock(record, None)
        return CommittedBlock(record, self._writer.block_tokens(record))

    def _first_missing(self, unit: int) -> int:
        """Return the first unit up to this one whose block is not committed.

        `unit` + 1: it is there. Blocks are committed in order, so that with thousands
        of workers ten questions find it.
        """
        if self._is_known(unit):
            return unit + 1
        # Back by 1, 2, 4, ... units to one that is there, and then in halves.
        first = self._plan.first_unit
        missing = unit
        step = 1
        while missing > first and not self._is_known(max(first, unit - step)):
            missing = max(first, unit - step)
            step *= 2
        known = max(first, unit - step) if missing > first else first - 1
        while missing - known > 1:
            middle = (known + missing) // 2
            if self._is_known(middle):
                known = middle
            else:
                missing = middle
        return missing

    def _is_known(self, unit: int) -> bool:
        """Return whether a unit's block is committed; any worker may have done that."""
        if unit in self.records:
            return True
        # Without other workers, what was not there at the beginning is not there now:
        # asking the storage would cost a request for every unit.
        if self._share.is_alone:
            return False
        record = self._writer.committed_block(unit)
        if record is None:
            return False
        self.records[unit] = record
        return True

    def _is_committed(self, unit: int) -> bool:
        """Return whether the unit itself is committed, by now."""
        if unit in self.committed_units:
            return True
        return not self._share.is_alone and self._writer.is_committed(unit)

    def _read_and_commit(self, unit: int) -> NDArray[np.int32] | None:
        """Read a block from the corpus and commit it; return its tokens.

        None: the corpus has nothing left.
        """
        if self._source is None:
            raise CorpusError(
                f"the token block of unit {unit} is missing; `actstore verify` lists"
                " what is"
            )
        # Reading on is cheap, going to a cursor may read part of the corpus again.
        if self._next_of_source != unit:
            cursor = self.records[unit - 1].cursor if unit > 0 else None
            self._source.seek(cursor)
        block = self._source.take(planned_sequences(self._plan.layout, unit))
        self._next_of_source = unit + 1
        if len(block.tokens) == 0:
            return None
        self._commit(unit, block)
        return block.tokens

    def _commit(self, unit: int, block: TokenBlock) -> None:
        _check_vocabulary(block.tokens, self._plan.model.vocabulary, unit)
        # The corpus ends with it, or the harvest does.
        last = block.ended or unit == self._plan.layout.n_units - 1
        self.records[unit] = self._writer.commit_block(
            unit, block.tokens, block.cursor, last, block.skipped
        )


def first_block(
    source: Sequencer, plan: Plan, cursor: dict[str, object] | None = None
) -> TokenBlock:
    """Read the first block of a plan, from a cursor on (None: the corpus' beginning).

    It is read before anything is written, so that an empty corpus leaves no store.

    Raises:
        CorpusError: Nothing is there to read.
    """
    name = plan.spec.corpus.name
    if cursor == END:
        raise CorpusError(
            f"corpus {name!r} has been harvested to its end; there is nothing to add"
        )
    source.seek(cursor)
    block = source.take(planned_sequences(plan.layout, plan.first_unit))
    if len(block.tokens) == 0:
        what = (
            f"not even one context of {plan.spec.context} tokens"
            if plan.spec.pack
            else "no document with a token"
        )
        left = " after the part that the store has" if cursor else ""
        raise CorpusError(
            f"corpus {name!r} holds {what}{left}; give more text or a shorter --context"
        )
    return block


def planned_sequences(layout: Layout, unit: int) -> int:
    """Return how many sequences a unit has, where the corpus does not end early."""
    left = layout.n_sequences - unit * layout.unit_sequences
    return min(layout.unit_sequences, left)


def planned_tokens(layout: Layout, units: range) -> int:
    """Return how many tokens some units have, where the corpus does not end early."""
    if len(units) == 0:
        return 0
    # Only the last unit of a store may be smaller than the others.
    n_sequences = (len(units) - 1) * layout.unit_sequences
    n_sequences += planned_sequences(layout, units[-1])
    return n_sequences * layout.context


def _check_vocabulary(tokens: NDArray[np.int32], vocabulary: int, unit: int) -> None:
    """Raise CorpusError for a token id that the model does not have.

    tokens: int32 [n_sequences, context]; vocabulary: 0 where it is not known.
    """
    largest = int(tokens.max(initial=-1))
    if vocabulary and largest >= vocabulary:
        raise CorpusError(
            f"token id {largest} in unit {unit}: the model's vocabulary has"
            f" {vocabulary} tokens; the corpus was tokenised for another model"
        )
