"""The composition of a harvest: tokens -> tap -> rows -> unit writer. `run.py` has what one worker does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from actstore.errors import (
    CorpusError,
    HarvestWarning,
    ModelError,
    OthersUnfinishedError,
    SpecError,
    UnfinishedError,
)
from actstore.format import layout as at
from actstore.format.manifest import read_manifest, read_plan
from actstore.format.records import read_record
from actstore.format.sizes import COLUMNS, SMALL_JSON
from actstore.format.storage import Storage
from actstore.harvesting.checkpoint import confirm_code
from actstore.harvesting.forward import device_of
from actstore.harvesting.ids import token_array
from actstore.harvesting.inert import check_acts
from actstore.harvesting.models import LoadedModel, loaded_model, place, tokenizer_files
from actstore.harvesting.planning import extension_plan, make_plan, parse_worker
from actstore.harvesting.run import Progress, Report, Run, first_block, tell_non_finite
from actstore.harvesting.specs import resolve_spec
from actstore.harvesting.tap import open_tap
from actstore.harvesting.tokens import separator_token, sequencer
from actstore.harvesting.weights import check_used
from actstore.harvesting.writer import StoreWriter, check_unfinished
from actstore.objects import StoredObjects
from schemas.harvest import HarvestSpec, Plan
from schemas.manifest import BlockRecord, StoreManifest

if TYPE_CHECKING:
    from actstore.store import Store

__all__ = ["HarvestWarning", "Progress", "extend", "harvest"]


def harvest(
    spec: HarvestSpec | Mapping[str, Any],
    out: str,
    *,
    model: nn.Module | None = None,
    tokens: Any = None,
    tokenizer: Any = None,
    device: str = "cpu",
    worker: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Store:
    """Run a language model over a corpus and keep the activations of some sites in a store at `out`.

    spec: a HarvestSpec or a dict of its fields (`model` and `corpus` may be plain names). `out`: any fsspec URL;
    `options` go to its file system. An unfinished harvest of the same spec there goes on where it stopped.

    model: instead of `spec.model`, a module in memory. Sites are TransformerLens hook names (of a Hugging Face model
    whose family it knows, a TransformerBridge or a HookedTransformer) or the names of the module's submodules; the
    forward of one that is no Hugging Face model must accept int64 [b, t]. See `actstore.harvesting.tap.open_tap`.
    tokens: instead of `spec.corpus`, an integer array or tensor [n, context] (one sequence a row) or [n] (a stream, cut
    into contexts), or an iterable of documents (texts or sequences of token ids). In an array [n, context] -1 is
    padding, before or behind a row's tokens; rows padded on the left are moved to the left, and so they are in the
    store: position 0 is a row's first token.
    worker: "3/8": this is the third of eight workers; it takes the units k with k mod 8 = 2. Any of them may die and be
    started again; the one that sees the last unit committed finishes the store. Without it, every unit that is left.
    progress: called after every batch, from the calling thread.

    Returns the finished store. Warns (HarvestWarning) where the corpus ends before `spec.tokens` are reached, and where
    rows hold a NaN or an infinity.

    Raises:
        SpecError, SiteError, ModelError, CorpusError, NumericsError: see `actstore.errors`. A site of which no row is
            finite is a NumericsError, told with the first rows.
        ExistsError: a finished store, another harvest, or other files are at `out`.
        StorageError: the disk is full (FullError), or the like; the same call goes on later.
        OthersUnfinishedError: this worker's units are done, and other workers still have some.
    """
    report = progress or (lambda _: None)
    wanted, share = resolve_spec(spec, model, tokens), parse_worker(worker)
    storage = Storage(out, dict(options or {}))
    check_unfinished(storage)
    report(Progress("loading the model"))
    loaded = loaded_model(wanted.model, model, tokenizer, device)
    loaded.check_context(wanted.context)
    check_acts(wanted, loaded, model)
    source, corpus = sequencer(wanted, loaded.tokenizer, tokens, loaded.info.vocabulary)
    with ExitStack() as stack:
        tap = open_tap(loaded, wanted.sites, compiled=wanted.compile, context=wanted.context)
        stack.callback(tap.close)
        check_used(loaded, tap)
        plan = make_plan(wanted, tap, loaded, corpus, tokens, device, separator_token(source))
        report(Progress("reading the corpus"))
        first = first_block(source, plan)
        tap.check_padding(first.tokens)
        writer = StoreWriter.create(storage, plan, tokenizer_files(loaded.tokenizer))
        stack.callback(writer.close)
        Run(plan, writer, source, tap, _device(device, loaded), report, share, loaded.pad).run(first)
        return _finished(writer, out, options, alone=share.of == 1)


def extend(
    out: str,
    *,
    sites: str | tuple[str, ...] | None = None,
    tokens: int | None = None,
    model: nn.Module | None = None,
    source: Any = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    worker: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Store:
    """Add to a finished store: more `sites` on the tokens and rows it has, or more `tokens` at the sites it has.

    The model must be the one that the store was harvested from (its weights' digest is compared); `model`, `source`
    and `tokenizer` stand for what a harvest in memory was given. Until the last unit is committed the store is what it
    was before; then its manifest is replaced by one that names the earlier content id as its parent. The same call
    resumes.

    trust_remote_code: where the store was harvested with it, say it again, for a store may come from anyone.

    Returns the extended store.

    Raises:
        SpecError: neither or both of sites and tokens; SiteError: a site that the store has already.
        ModelError: another model; CorpusError: another corpus, or nothing left in it.
    """
    _check_asked(sites, tokens, source)
    report = progress or (lambda _: None)
    storage, share = Storage(out, dict(options or {})), parse_worker(worker)
    parent = _extendable(storage)
    wanted = _extended(parent, sites, tokens)
    if model is None or trust_remote_code:
        confirm_code(parent.spec.model, trust_remote_code, storage.url)
    report(Progress("loading the model"))
    loaded = loaded_model(wanted.model, model, tokenizer, device)
    if loaded.info.weights_digest != parent.model.weights_digest:
        raise ModelError(
            f"{storage.url}: the model {place(wanted.model.name)} is not the one harvested: its weights differ"
        )
    with ExitStack() as stack:
        tap = open_tap(loaded, wanted.sites, compiled=wanted.compile, context=wanted.context)
        stack.callback(tap.close)
        check_used(loaded, tap)
        first, reader, corpus = None, None, None
        if sites is None:
            reader, corpus = sequencer(wanted, loaded.tokenizer, source, loaded.info.vocabulary)
        ends = separator_token(reader) if reader is not None else None
        plan = make_plan(wanted, tap, loaded, corpus, source, device, ends)
        plan = extension_plan(plan, parent, adds_sites=sites is not None)
        if reader is not None:
            _same_corpus(plan, storage)
            first = first_block(reader, plan, _cursor(storage, parent))
            tap.check_padding(first.tokens)
        writer = StoreWriter.create(storage, plan, parent=parent)
        stack.callback(writer.close)
        Run(plan, writer, reader, tap, _device(device, loaded), report, share, loaded.pad).run(first)
        return _finished(writer, out, options, alone=share.of == 1)


def _check_asked(sites: Any, tokens: int | None, source: Any) -> None:
    """What an extension cannot be is said before the model is loaded. Raises SpecError."""
    if (sites is None) == (tokens is None):
        raise SpecError("extend wants either more sites or more tokens, one at a time")
    if source is not None:
        token_array(source)
        if sites is not None:
            raise SpecError("source: more sites are harvested on the tokens that the store has; leave it out")


def _extended(parent: StoreManifest, sites: str | tuple[str, ...] | None, tokens: int | None) -> HarvestSpec:
    """What a store's harvest would have been with other sites, or with more tokens at the sites it has."""
    if sites is None:
        return parent.spec.model_copy(update={"tokens": tokens, "sites": tuple(site.name for site in parent.sites)})
    return parent.spec.model_copy(update={"sites": (sites,) if isinstance(sites, str) else tuple(sites)})


def _extendable(storage: Storage) -> StoreManifest:
    """The manifest of a harvested store, if what the new generation is added to is as it was recorded.

    Raises SpecError for an imported one, CorruptError.
    """
    found = read_manifest(storage)
    if found.imported is not None:
        raise SpecError(
            f"{storage.url}: this store was imported, so there is no model and no corpus to go on with; import all of "
            "it into a new store"
        )
    store = StoredObjects(storage, found)
    for name in COLUMNS:
        store.column(name)
    store.file(at.merged_stats_key(len(found.generations) - 1))
    return found


def _finished(writer: StoreWriter, out: str, options: Mapping[str, Any] | None, *, alone: bool) -> Store:
    from actstore.store import open as open_store

    missing = writer.missing_units()
    if missing != 0 and alone:
        raise UnfinishedError(
            f"{writer.storage.url}: the corpus has ended, but the last token block there does not say so, as an "
            "earlier version could leave it; harvest into another place"
        )
    if missing != 0:
        left = "other workers' units" if missing is None else f"{missing} units of other workers"
        raise OthersUnfinishedError(
            f"{writer.storage.url}: this worker's share is done; {left} are still missing. The worker that commits the "
            "last one finishes the store; a harvest without --worker takes over whatever is left"
        )
    writer.finish()
    store = open_store(out, dict(options or {}))
    tell_non_finite(store)
    return store


def _device(device: str, loaded: LoadedModel) -> torch.device:
    """Where tokens go: the device, or with `auto` that of the model's first part."""
    return torch.device(device) if device != "auto" else device_of(loaded.module)


def _cursor(storage: Storage, parent: StoreManifest) -> dict[str, Any]:
    """Where in the corpus the store ends."""
    key = at.block_key(parent.n_units - 1)
    return dict(read_record(storage, key, BlockRecord, SMALL_JSON).cursor)


def _same_corpus(plan: Plan, storage: Storage) -> None:
    before = read_plan(storage)
    if before.corpus_digest is not None and plan.corpus_digest != before.corpus_digest:
        raise CorpusError(
            f"{storage.url}: the corpus {place(plan.spec.corpus.name)} is not what it was when the store was harvested "
            "(files were added, removed or changed); more tokens must come from the same corpus"
        )
