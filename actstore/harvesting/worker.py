"""One worker of a harvest: it runs the model over the units of its share.

The main thread runs the model. One thread reads and tokenises the next unit's tokens
meanwhile, and another encodes and writes the unit before. Worker i of n takes the units
k with k mod n = i. A batch never reaches over the end of a unit, and whatever is
committed is final: a harvest whose workers are killed at any instant and started again
ends with the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.console.user_warnings import warn
from actstore.errors import CorpusError, HarvestWarning, ModelError
from actstore.harvesting.block_source import planned_tokens
from actstore.harvesting.fill_unit_buffer import RowCollector
from actstore.harvesting.handed_units import HandedUnits
from actstore.harvesting.harvest_warnings import warn_of_corpus
from actstore.harvesting.model_inputs import autocast, model_inputs
from actstore.harvesting.progress import Progress, Report
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.token_blocks import TokenBlocks
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.worker_share import Share
from actstore.harvesting.writer_thread import ToldOfUnits, WriterThread
from actstore.model.forward import out_of_memory
from actstore.model.tap import Tap
from actstore.text.sequences import Sequencer, TokenBlock
from schemas.harvest import Plan
from schemas.manifest import BlockRecord


@dataclass(slots=True)
class Worker:
    """Harvests the units of one worker's share.

    Attributes:
        plan: What all workers have agreed on.
        writer: Writes the store.
        source: The corpus; None where the token blocks are all there (more sites).
        tap: Runs the model and gives the sites' values.
        device: Where the tokens go.
        report: Called after every batch.
        share: Which units are this worker's.
        pad: The token id that the model is given where there is padding.
        told_of_units: See `ToldOfUnits`.
    """

    plan: Plan
    writer: StoreWriter
    source: Sequencer | None
    tap: Tap
    device: torch.device
    report: Report
    share: Share | HandedUnits = field(default_factory=Share)
    pad: int = 0
    told_of_units: ToldOfUnits | None = None
    # Counted for `report`, see Progress.
    _n_committed: int = 0
    _tokens: int = 0
    _resumed: int = 0

    def run(self, first: TokenBlock | None = None) -> None:
        """Harvest every unit of the share that is not committed yet.

        first: The plan's first block, where it was read before the store was made.
        """
        blocks = TokenBlocks(self.plan, self.writer, self.source, self.share)
        self._n_committed = len(blocks.committed_units)
        self._resumed = sum(
            blocks.records[unit].n_tokens
            for unit in blocks.committed_units
            if unit in blocks.records
        )
        if first is not None:
            blocks.begin(first)
        writer_thread = WriterThread(
            self.plan, self.writer, self.device, self.told_of_units
        )
        collector = RowCollector(
            sites=self.plan.sites,
            special_tokens=np.array(self.plan.model.special_tokens, np.int32),
            device=self.device,
            staging=writer_thread.staging_buffers(),
            filter=TokenFilter.of(self.plan.spec, self.plan.model),
            seed=self.plan.spec.seed,
        )
        try:
            for block in blocks.read_ahead():
                # No tokens: the unit is committed already.
                if block.tokens is None:
                    self._tokens += block.record.n_tokens
                    if self.told_of_units is not None:
                        self.told_of_units(block.record, None)
                else:
                    self._harvest_unit(
                        block.record, block.tokens, collector, writer_thread
                    )
            self._tell_progress(writer_thread, "writing the last units")
            writer_thread.drain()
        finally:
            writer_thread.close()
        # A worker among others does not see the whole corpus.
        if self.source is not None and self.share.is_alone:
            warn_of_corpus(self.plan, blocks.records)

    def _harvest_unit(
        self,
        block: BlockRecord,
        tokens: NDArray[np.int32],
        collector: RowCollector,
        writer_thread: WriterThread,
    ) -> None:
        """Run the model over a unit and hand its rows to the writer.

        Where the device has no room for a batch, the unit is begun again with batches
        of half the size, and the user is told.

        tokens: int32 [n_sequences, context], -1 where there is padding.
        """
        buffer = writer_thread.free_buffer()
        planned = self.plan.spec.batch
        # Another worker, or an earlier call, may have had room for fewer sequences.
        batch = min(self.writer.claimed(block.unit) or planned, planned)
        tokens_before = self._tokens
        while True:
            try:
                collector.begin_unit(buffer)
                self._run_model(block.unit, tokens, batch, collector, writer_thread)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if batch == 1:
                    raise ModelError(
                        f"out of memory on {self.device} with one sequence of"
                        f" {tokens.shape[1]}"
                    ) from error
                # Another worker that does this unit again has to use the same size:
                # the size of a batch may change the last digits of its values.
                batch = self.writer.claim(block.unit, batch // 2)
                self._tokens = tokens_before
            warn(
                f"out of memory on {self.device}: unit {block.unit} goes on with"
                f" {batch} sequences per forward",
                HarvestWarning,
            )
            # The allocator still holds pieces of memory in the size of the larger
            # batch.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        halved = batch if batch < planned else None
        filled = collector.finish_unit(block.unit, len(tokens), halved)
        writer_thread.submit(filled, block)

    def _run_model(
        self,
        unit: int,
        tokens: NDArray[np.int32],
        batch_size: int,
        collector: RowCollector,
        writer_thread: WriterThread,
    ) -> None:
        """Run the model over all sequences of a unit, so many at a time."""
        first_sequence = unit * self.plan.layout.unit_sequences
        for start in range(0, len(tokens), batch_size):
            batch = tokens[start : start + batch_size]
            collector.begin_batch(batch, first_sequence + start)
            self._forward(batch, collector)
            self._tokens += int(np.count_nonzero(batch >= 0))
            self._tell_progress(writer_thread)

    def _forward(self, batch: NDArray[np.int32], collector: RowCollector) -> None:
        """Run the model on a batch, int32 [b, context], and keep the sites' values."""
        ids, mask = model_inputs(batch, self.pad, self.device)
        try:
            with autocast(self.plan.spec.autocast, self.device):
                self.tap.run(ids, mask, collector.add_values)
        except IndexError as error:
            # Where a module says how large its vocabulary is, ids were checked when
            # their block was read. Else its embedding finds out.
            if self.plan.model.vocabulary or "out of range" not in str(error):
                raise
            raise CorpusError(
                f"token ids up to {batch.max()} are too large for the model's"
                " embedding; were they made for another?"
            ) from error

    def _tell_progress(
        self, writer_thread: WriterThread, stage: str = "harvesting"
    ) -> None:
        units = self.share.of_plan(self.plan)
        self.report(
            Progress(
                stage=stage,
                tokens=self._tokens,
                n_tokens=planned_tokens(self.plan.layout, units),
                units=self._n_committed + writer_thread.written,
                n_units=len(units),
                in_flight=writer_thread.in_flight,
                resumed=self._resumed,
                bytes=writer_thread.written_bytes,
            )
        )
