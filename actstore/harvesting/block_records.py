"""The records of token blocks, as far as a worker has asked for them."""

from __future__ import annotations

from actstore.harvesting.store_writer import StoreWriter
from schemas.manifest import BlockRecord


class BlockRecords:
    """Records by unit; what is not known is asked of the storage where others write.

    Attributes:
        known: Those that are known here.
    """

    def __init__(
        self, writer: StoreWriter, known: dict[int, BlockRecord], *, is_alone: bool
    ) -> None:
        """Make it; `is_alone`: nobody else writes, so that nothing new appears."""
        self._writer = writer
        self._is_alone = is_alone
        self.known = known

    def get(self, unit: int) -> BlockRecord | None:
        """Return the record of a unit's block, if it is there by now."""
        # Without other workers, what was not there at the beginning is not there now:
        # asking the storage would cost a request for every unit.
        if unit not in self.known and not self._is_alone:
            record = self._writer.committed_block(unit)
            if record is not None:
                self.known[unit] = record
        return self.known.get(unit)

    def first_missing(self, start: int, end: int) -> int:
        """Return a unit whose block is missing while the one before it is there.

        `start` where that one is missing; `end`, which is not asked for, where the
        blocks below are there. While blocks come in any order there may be others.
        """
        if start == end or self.get(start) is None:
            return start
        # On by 1, 2, 4, ... units to one that is not there, and then in halves: with
        # thousands of blocks twenty questions find it.
        there = start
        step = 1
        while there + step < end and self.get(there + step) is not None:
            there += step
            step *= 2
        missing = min(there + step, end)
        while missing - there > 1:
            middle = (there + missing) // 2
            if self.get(middle) is None:
                missing = middle
            else:
                there = middle
        return missing
