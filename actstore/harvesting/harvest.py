"""The composition of a harvest: tokens -> tap -> rows -> unit writer.

The main thread runs the model; one thread reads and tokenises a unit ahead and commits its token block; another
encodes and writes the unit before. Units are committed in order, a batch never straddles two of them, and whatever is
committed is final: a harvest that is killed at any instant and started again ends with the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from actstore.errors import CorpusError, ExistsError
from actstore.format import layout as at
from actstore.format.storage import Storage
from actstore.harvesting.background import Writing
from actstore.harvesting.models import LoadedModel, describe, load_model, tokenizer_files
from actstore.harvesting.planning import make_plan
from actstore.harvesting.rows import RowCollector
from actstore.harvesting.specs import resolve_spec
from actstore.harvesting.tap import Tap, open_tap
from actstore.harvesting.tokens import Sequencer, Sequences, sequencer
from actstore.harvesting.writer import StoreWriter
from schemas.harvest import HarvestSpec, Layout, Plan
from schemas.manifest import BlockRecord

if TYPE_CHECKING:
    from actstore.store import Store


class HarvestWarning(UserWarning):
    """Something about a harvest that is not an error: a corpus that ends early, documents left out."""


class Progress(NamedTuple):
    """Where a harvest stands. Tokens count from the store's beginning, `resumed` of them from earlier runs."""

    stage: str
    tokens: int = 0
    n_tokens: int = 0
    units: int = 0
    n_units: int = 0
    in_flight: int = 0
    resumed: int = 0


Report = Callable[[Progress], None]


def harvest(
    spec: HarvestSpec | Mapping[str, Any],
    out: str,
    *,
    model: nn.Module | None = None,
    tokens: Any = None,
    tokenizer: Any = None,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Store:
    """Run a language model over a corpus and keep the activations of some sites in a store at `out`.

    spec: a HarvestSpec or a dict of its fields (`model` and `corpus` may be plain names). `out`: any fsspec URL;
    `options` go to its file system. An unfinished harvest of the same spec there goes on where it stopped.

    model: instead of `spec.model`, a module in memory. If it is a Hugging Face model, a TransformerBridge or a
    HookedTransformer, sites are TransformerLens hook names; for any other module they are the names of its
    submodules, and `model(tokens)` must accept int64 [b, t].
    tokens: instead of `spec.corpus`, an integer array [n, context] (sequences as they are, -1 for padding), an integer
    array [n] (a stream, cut into contexts), or an iterable of documents (texts or sequences of token ids).
    progress: called after every batch, from the calling thread.

    Returns the finished store. Warns (HarvestWarning) where the corpus ends before `spec.tokens` are reached.

    Raises:
        SpecError, SiteError, ModelError, CorpusError, NumericsError: see `actstore.errors`.
        ExistsError: a finished store, another harvest, or other files are at `out`.
        StorageError: the disk is full, or the like; the same call goes on later.
    """
    report = progress or (lambda _: None)
    wanted = resolve_spec(spec, model, tokens)
    storage = Storage(out, dict(options or {}))
    if storage.exists(at.MANIFEST):
        raise ExistsError(f"{storage.url}: a finished store is already there; choose another place or remove it")
    report(Progress("loading the model"))
    loaded = _loaded(wanted, model, tokenizer, device)
    loaded.check_context(wanted.context)
    source, corpus = sequencer(wanted, loaded.tokenizer, tokens)
    with ExitStack() as stack:
        tap = open_tap(loaded, wanted.sites)
        stack.callback(tap.close)
        plan = make_plan(wanted, tap, loaded, corpus, tokens, device)
        report(Progress("reading the corpus"))
        first = _first_block(source, plan)
        writer = StoreWriter.create(storage, plan, tokenizer_files(loaded.tokenizer))
        stack.callback(writer.close)
        _Harvest(plan, writer, source, tap, torch.device(device), report).run(first)
        writer.finish()
    from actstore.store import open as open_store

    return open_store(out, dict(options or {}))


@dataclass(slots=True)
class _Harvest:
    """One worker's run over the units of a plan."""

    plan: Plan
    writer: StoreWriter
    source: Sequencer
    tap: Tap
    device: torch.device
    report: Report
    _blocks: dict[int, BlockRecord] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _at: int | None = None  # the unit whose block the source stands before
    _tokens: int = 0
    _resumed: int = 0

    def run(self, first: Sequences) -> None:
        """Harvest every unit that is not committed yet."""
        self._blocks, self._done = self.writer.committed_blocks(), self.writer.committed_units()
        self._resumed = sum(self._blocks[unit].n_tokens for unit in self._done if unit in self._blocks)
        self._begin(first)
        writing = Writing(self.plan, self.writer, self.device)
        collector = RowCollector(
            self.plan.sites, np.array(self.plan.model.special_tokens, np.int32), self.device, writing.staging()
        )
        try:
            for block, tokens in self._read_ahead():
                self._unit(block, tokens, collector, writing)
            self._progress(writing, "writing the last units")
            writing.drain()
        finally:
            writing.close()
        self._warn()

    def _unit(
        self, block: BlockRecord, tokens: NDArray[np.int32] | None, collector: RowCollector, writing: Writing
    ) -> None:
        if tokens is None:
            self._tokens += block.n_tokens
            return
        collector.begin(writing.buffer())
        first = block.unit * self.plan.layout.unit_sequences
        for start in range(0, len(tokens), self.plan.spec.batch):
            batch = tokens[start : start + self.plan.spec.batch]
            collector.batch(batch, first + start)
            self._forward(batch, collector)
            self._tokens += int(np.count_nonzero(batch >= 0))
            self._progress(writing)
        writing.submit(collector.finish(block.unit, len(tokens)), block)

    def _forward(self, batch: NDArray[np.int32], collector: RowCollector) -> None:
        whole = bool((batch >= 0).all())
        ids = torch.from_numpy(np.maximum(batch, 0).astype(np.int64)).to(self.device)
        mask = None if whole else torch.from_numpy((batch >= 0).astype(np.int64)).to(self.device)
        self.tap.run(ids, mask, collector.take)

    def _read_ahead(self) -> Iterator[tuple[BlockRecord, NDArray[np.int32] | None]]:
        """Blocks in order with their tokens (None: the unit is committed); the next one is read meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="tokens") as pool:
            unit, coming = 0, pool.submit(self._block, 0)
            while True:
                block, tokens = coming.result()
                if not block.last:
                    coming = pool.submit(self._block, unit + 1)
                yield block, tokens
                if block.last:
                    return
                unit += 1

    def _block(self, unit: int) -> tuple[BlockRecord, NDArray[np.int32] | None]:
        block = self._blocks.get(unit)
        if block is None:
            return self._next_block(unit)
        return block, None if unit in self._done else self.writer.block_tokens(block)

    def _next_block(self, unit: int) -> tuple[BlockRecord, NDArray[np.int32]]:
        """Read a block from the corpus and commit it."""
        if self._at != unit:
            self.source.seek(self._blocks[unit - 1].cursor if unit else None)
        found = self.source.take(_block_sequences(self.plan.layout, unit))
        self._at = unit + 1
        return self._commit(unit, found), found.tokens

    def _commit(self, unit: int, found: Sequences) -> BlockRecord:
        _check_tokens(found.tokens, self.plan.model.vocabulary, unit)
        last = found.ended or unit == self.plan.layout.n_units - 1
        block = self.writer.commit_block(unit, found.tokens, found.cursor, last, found.skipped)
        self._blocks[unit] = block
        return block

    def _begin(self, first: Sequences) -> None:
        """The first block was read before the store was made; an earlier run's must be the same."""
        block = self._blocks.get(0)
        if block is None:
            self._commit(0, first)
            self._at = 1
        elif not np.array_equal(self.writer.block_tokens(block), first.tokens):
            raise ExistsError(
                f"{self.writer.storage.url}: the harvest there began on another corpus: its first tokens differ; "
                "give the same corpus to resume it, or choose another place"
            )

    def _progress(self, writing: Writing, stage: str = "harvesting") -> None:
        done = len(self._done) + writing.written
        n_tokens = self.plan.layout.n_sequences * self.plan.layout.context
        self.report(
            Progress(stage, self._tokens, n_tokens, done, self.plan.layout.n_units, writing.in_flight, self._resumed)
        )

    def _warn(self) -> None:
        sequences = sum(block.n_sequences for block in self._blocks.values())
        if sequences < self.plan.layout.n_sequences:
            warnings.warn(
                f"the corpus ended early: {self._tokens:,} tokens in {sequences:,} sequences, wanted "
                f"{self.plan.spec.tokens:,} tokens; the store is finished with what there was",
                HarvestWarning,
                stacklevel=4,
            )
        skipped = sum(block.skipped_documents for block in self._blocks.values())
        if skipped:
            warnings.warn(
                f"{skipped:,} documents were left out: empty, or refused by the tokenizer",
                HarvestWarning,
                stacklevel=4,
            )


def _loaded(spec: HarvestSpec, model: nn.Module | None, tokenizer: Any, device: str) -> LoadedModel:
    if model is None:
        return load_model(spec.model, device)
    return describe(model.to(device), tokenizer)


def _first_block(source: Sequencer, plan: Plan) -> Sequences:
    """Read before anything is written, so that an empty corpus leaves nothing behind."""
    source.seek(None)
    found = source.take(_block_sequences(plan.layout, 0))
    if len(found.tokens) == 0:
        what = f"not even one context of {plan.spec.context} tokens" if plan.spec.pack else "no document with a token"
        raise CorpusError(f"corpus {plan.spec.corpus.name!r} holds {what}; give more text or a shorter --context")
    return found


def _block_sequences(layout: Layout, unit: int) -> int:
    return min(layout.unit_sequences, layout.n_sequences - unit * layout.unit_sequences)


def _check_tokens(tokens: NDArray[np.int32], vocabulary: int, unit: int) -> None:
    worst = int(tokens.max(initial=-1))
    if vocabulary and worst >= vocabulary:
        raise CorpusError(
            f"token id {worst} in unit {unit}: the model's vocabulary has {vocabulary} tokens; "
            "the corpus was tokenised for another model"
        )
