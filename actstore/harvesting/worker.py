"""One worker's run over the units of a plan.

The main thread runs the model; one thread reads and tokenises a unit ahead and commits
its token block; another encodes and writes the unit before. Worker i of n takes the
units k with k mod n = i. A batch never straddles two units, and whatever is committed
is final: a harvest whose workers are killed at any instant and started again ends with
the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.errors import CorpusError, ExistsError, HarvestWarning, ModelError
from actstore.harvesting.harvest_plan import Share
from actstore.harvesting.row_collector import RowCollector
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.writer_thread import Writing
from actstore.model.forward import out_of_memory
from actstore.model.tap import Tap
from actstore.store.non_finite import non_finite
from actstore.text.sequences import END, Sequencer, Sequences
from schemas.harvest import Layout, Plan
from schemas.manifest import BlockRecord

if TYPE_CHECKING:
    from actstore.store.store import Store

Tokens = NDArray[np.int32]


class Progress(NamedTuple):
    """Where a worker stands. Tokens count from the store's beginning, `resumed` of them
    from earlier runs.

    units: committed ones of this worker's; in_flight: captured but not committed;
    bytes: written by this run.
    """

    stage: str
    tokens: int = 0
    n_tokens: int = 0
    units: int = 0
    n_units: int = 0
    in_flight: int = 0
    resumed: int = 0
    bytes: int = 0


Report = Callable[[Progress], None]


@dataclass(slots=True)
class Run:
    """Harvests the units of one worker. `source` is None where the token blocks are all
    there (more sites).

    pad: the token that the model is given where there is none.
    """

    plan: Plan
    writer: StoreWriter
    source: Sequencer | None
    tap: Tap
    device: torch.device
    report: Report
    share: Share = field(default_factory=Share)
    pad: int = 0
    _blocks: dict[int, BlockRecord] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _at: int | None = None  # the unit whose block the source stands before
    _tokens: int = 0
    _resumed: int = 0

    def run(self, first: Sequences | None = None) -> None:
        """Harvest every unit of this worker that is not committed yet.

        `first`: the plan's first block, where it was read before the store was made.
        """
        self._blocks, self._done = (
            self.writer.committed_blocks(),
            self.writer.committed_units(),
        )
        self._done &= set(self.share.units(self.plan))
        self._resumed = sum(
            self._blocks[unit].n_tokens for unit in self._done if unit in self._blocks
        )
        if first is not None:
            self._begin(first)
        writing = Writing(self.plan, self.writer, self.device)
        collector = RowCollector(
            self.plan.sites,
            np.array(self.plan.model.special_tokens, np.int32),
            self.device,
            writing.staging(),
            TokenFilter.of(self.plan.spec, self.plan.model),
            self.plan.spec.seed,
        )
        try:
            for block, tokens in self._read_ahead():
                if tokens is None:
                    self._tokens += block.n_tokens
                else:
                    self._unit(block, tokens, collector, writing)
            self._progress(writing, "writing the last units")
            writing.drain()
        finally:
            writing.close()
        self._warn()

    def _unit(
        self,
        block: BlockRecord,
        tokens: Tokens,
        collector: RowCollector,
        writing: Writing,
    ) -> None:
        """Run one unit; where the device has no room for a batch, at half its size, and
        say so.
        """
        buffer = writing.buffer()
        planned = self.plan.spec.batch
        batch = min(self.writer.claimed(block.unit) or planned, planned)
        before = self._tokens
        while True:
            try:
                collector.begin(buffer)
                self._forward_unit(block.unit, tokens, batch, collector, writing)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if batch == 1:
                    raise ModelError(
                        f"out of memory on {self.device} with one sequence of"
                        f" {tokens.shape[1]}"
                    ) from error
                batch = self.writer.claim(block.unit, batch // 2)
                self._tokens = before
            _note(
                f"out of memory on {self.device}: unit {block.unit} goes on with"
                f" {batch} sequences per forward"
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        halved = batch if batch < planned else None
        writing.submit(collector.finish(block.unit, len(tokens), halved), block)

    def _forward_unit(
        self,
        unit: int,
        tokens: Tokens,
        size: int,
        collector: RowCollector,
        writing: Writing,
    ) -> None:
        first = unit * self.plan.layout.unit_sequences
        for start in range(0, len(tokens), size):
            batch = tokens[start : start + size]
            collector.batch(batch, first + start)
            self._forward(batch, collector)
            self._tokens += int(np.count_nonzero(batch >= 0))
            self._progress(writing)

    def _forward(self, batch: Tokens, collector: RowCollector) -> None:
        ids, mask = inputs(batch, self.pad, self.device)
        try:
            with autocast(self.plan.spec.autocast, self.device):
                self.tap.run(ids, mask, collector.take)
        except IndexError as error:
            # an embedding's, of a module that does not say how large its vocabulary is
            if self.plan.model.vocabulary or "out of range" not in str(error):
                raise
            raise CorpusError(
                f"token ids up to {batch.max()} are too large for the model's"
                " embedding; were they made for another?"
            ) from error

    def _read_ahead(self) -> Iterator[tuple[BlockRecord, Tokens | None]]:
        """This worker's blocks in order with their tokens (None: committed); the next
        one is read meanwhile.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="tokens") as pool:
            coming = None
            for unit in self.share.units(self.plan):
                mine = coming or pool.submit(self._block, unit)
                found = mine.result()
                following = unit + self.share.of
                coming = (
                    pool.submit(self._block, following)
                    if following < self.plan.layout.n_units
                    else None
                )
                if found is None:
                    return
                yield found

    def _block(self, unit: int) -> tuple[BlockRecord, Tokens | None] | None:
        """A unit's block; those before it that nobody has read yet are read too. None:
        the corpus ends before it.
        """
        if (
            self.source is None
            and self.writer.parent is not None
            and unit >= self.writer.parent.n_units
        ):
            return None
        start = unit
        while start >= self.plan.first_unit and not self._known(start):
            start -= 1
        for at in range(start + 1, unit + 1):
            if at > 0 and at > self.plan.first_unit and self._blocks[at - 1].last:
                return None
            if not self._known(at):  # another worker may have read it meanwhile
                found = self._next_block(at)
                if found is None:
                    return None
                if at == unit:
                    return self._blocks[at], found
        block = self._blocks[unit]
        done = unit in self._done or (
            self.share.of > 1 and self.writer.is_committed(unit)
        )
        return block, None if done else self.writer.block_tokens(block)

    def _known(self, unit: int) -> bool:
        if unit not in self._blocks and self.share.of > 1:
            found = self.writer.committed_block(unit)
            if found is not None:
                self._blocks[unit] = found
        return unit in self._blocks

    def _next_block(self, unit: int) -> Tokens | None:
        """Read a block from the corpus and commit it. None: there is nothing left."""
        if self.source is None:
            raise CorpusError(
                f"the token block of unit {unit} is missing; `actstore verify` lists"
                " what is"
            )
        if self._at != unit:
            self.source.seek(self._blocks[unit - 1].cursor if unit else None)
        found = self.source.take(block_sequences(self.plan.layout, unit))
        self._at = unit + 1
        if not len(found.tokens):
            return None
        self._commit(unit, found)
        return found.tokens

    def _commit(self, unit: int, found: Sequences) -> None:
        _check_tokens(found.tokens, self.plan.model.vocabulary, unit)
        last = found.ended or unit == self.plan.layout.n_units - 1
        self._blocks[unit] = self.writer.commit_block(
            unit, found.tokens, found.cursor, last, found.skipped
        )

    def _begin(self, first: Sequences) -> None:
        """The first block was read before the store was made; an earlier run's must be
        the same.
        """
        unit = self.plan.first_unit
        block = self._blocks.get(unit)
        if block is None:
            self._commit(unit, first)
            self._at = unit + 1
        elif not np.array_equal(self.writer.block_tokens(block), first.tokens):
            raise ExistsError(
                f"{self.writer.storage.url}: the harvest there began on another corpus:"
                " its first tokens differ; give the same corpus to resume it, or"
                " choose another place"
            )

    def _progress(self, writing: Writing, stage: str = "harvesting") -> None:
        layout, mine = self.plan.layout, self.share.units(self.plan)
        n_tokens = (
            sum(block_sequences(layout, unit) for unit in mine[-1:]) * layout.context
        )
        n_tokens += len(mine[:-1]) * layout.unit_sequences * layout.context
        done = len(self._done) + writing.written
        self.report(
            Progress(
                stage,
                self._tokens,
                n_tokens,
                done,
                len(mine),
                writing.in_flight,
                self._resumed,
                writing.written_bytes,
            )
        )

    def _warn(self) -> None:
        if self.source is None or self.share.of > 1:
            return
        new = {
            unit: block
            for unit, block in self._blocks.items()
            if unit >= self.plan.first_unit
        }
        sequences = sum(block.n_sequences for block in new.values())
        wanted = (
            self.plan.layout.n_sequences
            - self.plan.first_unit * self.plan.layout.unit_sequences
        )
        if sequences < wanted:
            _note(
                f"the corpus ended early: {self._tokens:,} tokens in {sequences:,}"
                f" sequences, wanted {self.plan.spec.tokens:,} tokens; the store is"
                " finished with what there was"
            )
        skipped = sum(block.skipped_documents for block in new.values())
        if skipped:
            _note(
                f"{skipped:,} documents were left out: empty, or refused by the"
                " tokenizer"
            )


def first_block(
    source: Sequencer, plan: Plan, cursor: dict[str, object] | None = None
) -> Sequences:
    """Read before anything is written, so that an empty corpus leaves nothing behind.
    Raises CorpusError.
    """
    if cursor == END:
        raise CorpusError(
            f"corpus {plan.spec.corpus.name!r} has been harvested to its end; there is"
            " nothing to add"
        )
    source.seek(cursor)
    found = source.take(block_sequences(plan.layout, plan.first_unit))
    if len(found.tokens) == 0:
        what = (
            f"not even one context of {plan.spec.context} tokens"
            if plan.spec.pack
            else "no document with a token"
        )
        left = " any more" if cursor else ""
        raise CorpusError(
            f"corpus {plan.spec.corpus.name!r} holds {what}{left}; give more text or a"
            " shorter --context"
        )
    return found


def block_sequences(layout: Layout, unit: int) -> int:
    """Sequences of a unit as planned."""
    return min(layout.unit_sequences, layout.n_sequences - unit * layout.unit_sequences)


def inputs(
    batch: Tokens, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids int64 [b, t] for a model, `pad` where there is padding, and the mask: 1
    where there is a token; None where there is one everywhere.
    """
    there = batch >= 0
    ids = torch.from_numpy(np.where(there, batch, pad).astype(np.int64)).to(device)
    return ids, (
        None if there.all() else torch.from_numpy(there.astype(np.int64)).to(device)
    )


def autocast(dtype: str | None, device: torch.device) -> AbstractContextManager[object]:
    """torch.autocast in a spec's dtype, or nothing."""
    return (
        nullcontext()
        if dtype is None
        else torch.autocast(device.type, getattr(torch, dtype))
    )


def tell_non_finite(store: Store) -> None:
    """Warn of rows that hold a NaN or an infinity."""
    if found := non_finite(store):
        _note(
            f"not finite: {non_finite_rows(found, store.manifest.n_rows)}; they are"
            " stored, and in no statistic"
        )


def non_finite_rows(found: Mapping[str, int], rows: int) -> str:
    """For people: counts by site, of so many rows each."""
    shown = [f"{n:,} of {rows:,} rows at {site}" for site, n in list(found.items())[:8]]
    more = f", and some at {len(found) - 8} more sites" if len(found) > 8 else ""
    return ", ".join(shown) + more


def _note(text: str) -> None:
    warnings.warn(text, HarvestWarning, stacklevel=5)


def _check_tokens(tokens: Tokens, vocabulary: int, unit: int) -> None:
    worst = int(tokens.max(initial=-1))
    if vocabulary and worst >= vocabulary:
        raise CorpusError(
            f"token id {worst} in unit {unit}: the model's vocabulary has {vocabulary}"
            " tokens; the corpus was tokenised for another model"
        )
