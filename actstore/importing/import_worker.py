"""A feed becomes the units of a store: the same permutation, statistics, records and
order as a harvest's.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from actstore.errors import HarvestWarning, SourceError
from actstore.format.zarr_metadata import metadata_files
from actstore.harvesting.row_collector import RowCollector
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker import Progress, Report
from actstore.harvesting.writer_thread import Writing
from actstore.importing.sequence_feed import Feed


class Run:
    """Reads a feed unit by unit into a store; another thread encodes and writes the
    unit before.
    """

    def __init__(self, feed: Feed, writer: StoreWriter, report: Report) -> None:
        self._feed, self._writer, self._report = feed, writer, report
        self._plan = writer.plan
        self._done = writer.committed_units()
        self._at = 0  # the next sequence
        self._rows, self._padding, self._resumed = 0, 0, 0

    def run(self) -> None:
        """Write every unit that is not committed yet, then the manifest."""
        writing = Writing(self._plan, self._writer, torch.device("cpu"))
        none = np.zeros(0, np.int32)
        collector = RowCollector(
            self._plan.sites,
            none,
            torch.device("cpu"),
            seed=self._plan.spec.seed,
            positions=self._feed.contexts,
        )
        try:
            unit = 0
            while self._feed.more(self._at):
                if unit in self._done:
                    self._pass_over()
                else:
                    self._unit(unit, collector, writing)
                unit += 1
            self._progress(writing, "writing the last units")
            writing.drain()
        finally:
            writing.close()
        self._finish(unit)

    def _pass_over(self) -> None:
        layout = self._plan.layout
        stop = min(self._at + layout.unit_sequences, layout.n_sequences)
        self._resumed += (stop - self._at) * layout.context
        self._at = stop

    def _unit(self, unit: int, collector: RowCollector, writing: Writing) -> None:
        layout, first = self._plan.layout, self._at
        stop, blocks = first + layout.unit_sequences, []
        collector.begin(writing.buffer())
        while self._at < stop and self._feed.more(self._at):
            batch = self._feed.batch(
                self._at, min(self._plan.spec.batch, stop - self._at)
            )
            there = (
                np.zeros((batch.n, layout.context), np.int32)
                if batch.tokens is None
                else batch.tokens
            )
            collector.batch(there, self._at)
            for i, site in enumerate(self._plan.sites):
                collector.take(i, batch.values[site.name])
            blocks.append(np.full_like(there, -1) if batch.tokens is None else there)
            self._padding += int(np.count_nonzero(there < 0))
            self._rows += int(np.count_nonzero(there >= 0))
            self._at += batch.n
            self._progress(writing)
        pending = collector.finish(unit, self._at - first)
        last = not self._feed.more(self._at)
        block = self._writer.commit_block(
            unit, np.concatenate(blocks), {"sequence": self._at}, last
        )
        writing.submit(pending, block)

    def _finish(self, n_units: int) -> None:
        """The manifest; where an iterator gave another number than planned, the arrays
        get the size they have.
        """
        if not self._rows and not self._done:
            raise SourceError("every token is padding (-1); there is no row to keep")
        layout = self._plan.layout
        if self._at < layout.n_sequences:
            layout = layout.model_copy(
                update={"n_sequences": self._at, "n_units": n_units}
            )
            spec = self._plan.spec.model_copy(
                update={"tokens": self._at * layout.context}
            )
            self._writer.plan = self._plan.model_copy(
                update={"layout": layout, "spec": spec}
            )
            for key, data in metadata_files(self._writer.plan).items():
                self._writer.storage.put(key, data)
        self._writer.finish()
        if self._padding:
            note(f"{self._padding:,} rows were left out: their tokens are padding (-1)")

    def _progress(self, writing: Writing, stage: str = "importing") -> None:
        n = self._feed.n_sequences or 0
        units = -(-n // self._plan.layout.unit_sequences)
        done = len(self._done) + writing.written
        context = self._plan.layout.context
        self._report(
            Progress(
                stage, self._at * context, n * context, done, units, writing.in_flight, self._resumed,
                writing.written_bytes,
            )
        )  # fmt: skip


def note(text: str) -> None:
    """Say something about an import that is no error."""
    warnings.warn(text, HarvestWarning, stacklevel=4)
