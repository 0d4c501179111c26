"""The corpus, as the token blocks of a plan's units.

Where in the corpus a block starts is in the record of the one before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorpusError
from actstore.harvesting.block_records import BlockRecords
from actstore.harvesting.store_writer import StoreWriter
from actstore.text.sequences import END, Sequencer, TokenBlock
from schemas.harvest import Layout, Plan
from schemas.manifest import BlockRecord


class Commit(NamedTuple):
    """A token block that was written."""

    record: BlockRecord
    """Its record."""

    is_first: bool
    """Whether nobody had committed it before."""


class BlockSource:
    """Reads blocks from the corpus and commits them. One thread at a time reads."""

    def __init__(
        self, plan: Plan, writer: StoreWriter, source: Sequencer, records: BlockRecords
    ) -> None:
        """Make it.

        Args:
            plan: Says how many sequences a block has.
            writer: Writes blocks.
            source: The corpus.
            records: Tell where a block starts that is not the one after the last.
        """
        self._plan = plan
        self._writer = writer
        self._source = source
        self._records = records
        # The unit whose block the source gives next; None: not known.
        self._next: int | None = None

    def has_read(self, unit: int) -> None:
        """Note that the source stands behind a unit's block."""
        self._next = unit + 1

    def read(self, unit: int) -> TokenBlock | None:
        """Read a unit's block; the one before it is committed, or was read just now.

        None: the corpus ends before it.

        Raises:
            CorpusError: It cannot be read, or has ids that the model does not have; the
            one before it is missing.
        """
        # Reading on is cheap, going to a cursor may read part of the corpus again.
        if self._next != unit:
            before = self._records.get(unit - 1)
            if before is None:
                raise missing_block(unit - 1)
            if before.last:
                return None
            self._source.seek(before.cursor)
        self._next = None
        block = self._source.take(planned_sequences(self._plan.layout, unit))
        if len(block.tokens) == 0:
            return None
        _check_vocabulary(block.tokens, self._plan.model.vocabulary, unit)
        self._next = unit + 1
        return block

    def commit(self, unit: int, block: TokenBlock) -> Commit:
        """Write a block, and then its record; safe to call from several threads."""
        # The corpus ends with it, or the harvest does.
        last = block.ended or unit == self._plan.layout.n_units - 1
        record = self._writer.put_block(
            unit, block.tokens, block.cursor, last, block.skipped
        )
        return Commit(record, self._writer.create_block_record(record))


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


def missing_block(unit: int) -> CorpusError:
    """Return the error for a block that should be there."""
    return CorpusError(
        f"the token block of unit {unit} is missing; `actstore verify` lists what is"
    )


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
