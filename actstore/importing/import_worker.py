"""Reads a feed into the units of a store.

The units have the permutation, statistics, records and order of a harvest's.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.console.user_warnings import warn
from actstore.errors import HarvestWarning, SourceError
from actstore.format.zarr_metadata import metadata_files
from actstore.harvesting.fill_unit_buffer import RowCollector
from actstore.harvesting.progress import Progress, Report
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.writer_thread import WriterThread
from actstore.importing.sequence_feed import Feed, SequenceBatch


class ImportWorker:
    """Reads a feed into a store, unit by unit.

    Another thread encodes and writes the unit before.

    Args:
        feed: What is read.
        writer: What writes it; it has the plan.
        report: Is told how far the import is.
    """

    def __init__(self, feed: Feed, writer: StoreWriter, report: Report) -> None:
        self._feed = feed
        self._writer = writer
        self._report = report
        self._plan = writer.plan
        self._done_before = writer.committed_units()
        self._next_sequence = 0
        self._n_rows = 0
        self._n_padding = 0
        self._n_resumed = 0  # rows of units that were committed before

    def run(self) -> None:
        """Write every unit that is not committed yet, then the manifest."""
        host = torch.device("cpu")
        # Which tokens are special a tokenizer would tell, and an import has none.
        no_special_tokens = np.zeros(0, np.int32)
        writing = WriterThread(self._plan, self._writer, host)
        collector = RowCollector(
            self._plan.sites,
            no_special_tokens,
            host,
            seed=self._plan.spec.seed,
            # Without contexts every row would be the first of its sequence, and the
            # stratum of special rows would take them all.
            positions=self._feed.has_contexts,
        )
        try:
            unit = 0
            while self._feed.has(self._next_sequence):
                if unit in self._done_before:
                    self._pass_over_unit()
                else:
                    self._read_unit(unit, collector, writing)
                unit += 1
            self._tell_progress(writing, "writing the last units")
            # The manifest must not be written before the last record.
            writing.drain()
        finally:
            writing.close()
        self._finish(n_units=unit)

    def _pass_over_unit(self) -> None:
        """Go on after a unit that an import before this one has committed."""
        layout = self._plan.layout
        stop = min(self._next_sequence + layout.unit_sequences, layout.n_sequences)
        self._n_resumed += (stop - self._next_sequence) * layout.context
        self._next_sequence = stop

    def _read_unit(
        self, unit: int, collector: RowCollector, writing: WriterThread
    ) -> None:
        """Read the sequences of one unit, and hand it to the writing thread."""
        first = self._next_sequence
        stop = first + self._plan.layout.unit_sequences
        token_blocks = []
        collector.begin_unit(writing.free_buffer())
        while self._next_sequence < stop and self._feed.has(self._next_sequence):
            n = min(self._plan.spec.batch, stop - self._next_sequence)
            batch = self._feed.read(self._next_sequence, n)
            token_blocks.append(self._collect(batch, collector))
            self._tell_progress(writing)
        filled_unit = collector.finish_unit(unit, self._next_sequence - first)
        # The block is committed before its unit, as in a harvest.
        is_last = not self._feed.has(self._next_sequence)
        block = self._writer.commit_block(
            unit,
            np.concatenate(token_blocks),
            {"sequence": self._next_sequence},
            is_last,
        )
        writing.submit(filled_unit, block)

    def _collect(
        self, batch: SequenceBatch, collector: RowCollector
    ) -> NDArray[np.int32]:
        """Give a batch to the collector.

        Returns:
            The token ids that the store keeps, int32 [n, context]: -1 everywhere where
            they are not known.
        """
        tokens = batch.tokens
        if tokens is None:
            # Token 0 everywhere: -1 would be padding, of which no row is kept.
            tokens = np.zeros((batch.n, self._plan.layout.context), np.int32)
        collector.begin_batch(tokens, self._next_sequence)
        for i, site in enumerate(self._plan.sites):
            collector.add_values(i, batch.values[site.name])
        n_rows = int(np.count_nonzero(tokens >= 0))
        self._n_rows += n_rows
        self._n_padding += tokens.size - n_rows
        self._next_sequence += batch.n
        return np.full_like(tokens, -1) if batch.tokens is None else tokens

    def _finish(self, n_units: int) -> None:
        """Write the manifest.

        Where an iterator gave fewer sequences than planned, the plan and the arrays get
        the size they have.
        """
        if not self._n_rows and not self._done_before:
            raise SourceError("every token is padding (-1); there is no row to keep")
        layout = self._plan.layout
        n_sequences = self._next_sequence
        if n_sequences < layout.n_sequences:
            # An iterator's import was planned without a bound. Its arrays would claim
            # units that never come, so their metadata is written anew.
            layout = layout.model_copy(
                update={"n_sequences": n_sequences, "n_units": n_units}
            )
            n_tokens = n_sequences * layout.context
            spec = self._plan.spec.model_copy(update={"tokens": n_tokens})
            self._writer.plan = self._plan.model_copy(
                update={"layout": layout, "spec": spec}
            )
            for key, data in metadata_files(self._writer.plan).items():
                self._writer.storage.put(key, data)
        self._writer.finish()
        if self._n_padding:
            warn(
                f"{self._n_padding:,} rows were left out: their tokens are padding"
                " (-1)",
                HarvestWarning,
            )

    def _tell_progress(self, writing: WriterThread, stage: str = "importing") -> None:
        layout = self._plan.layout
        n_sequences = self._feed.n_sequences or 0  # 0: not known
        # Rounded up: the last unit may have fewer sequences than the others.
        n_units = -(-n_sequences // layout.unit_sequences)
        self._report(
            Progress(
                stage,
                self._next_sequence * layout.context,
                n_sequences * layout.context,
                len(self._done_before) + writing.written,
                n_units,
                writing.in_flight,
                self._n_resumed,
                writing.written_bytes,
            )
        )
