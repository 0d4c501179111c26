"""Adding to a finished store: more sites on the tokens it has, or more tokens at the
sites it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from actstore.errors import (
    CorpusError,
    ModelError,
    SpecError,
)
from actstore.format import keys
from actstore.format.json_records import read_record
from actstore.format.manifest import read_manifest, read_plan
from actstore.format.object_sizes import COLUMNS, SMALL_JSON
from actstore.format.storage import Storage
from actstore.format.token_ids import token_array
from actstore.harvesting.harvest_plan import extension_plan, make_plan, parse_worker
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker import Progress, Report, Run, first_block
from actstore.model.checkpoint_files import confirm_code
from actstore.model.load_model import loaded_model, place
from actstore.model.loaded_weights import check_used
from actstore.model.open_tap import open_tap
from actstore.store.stored_objects import StoredObjects
from actstore.text.sequences import separator_token, sequencer
from schemas.harvest import HarvestSpec, Plan
from schemas.manifest import BlockRecord, StoreManifest

if TYPE_CHECKING:
    from actstore.store.store import Store
from actstore.harvesting.harvest import finished_store, tokens_device


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
    """Add to a finished store: more `sites` on the tokens and rows it has, or more
    `tokens` at the sites it has.

    The model must be the one that the store was harvested from (its weights' digest is
    compared); `model`, `source` and `tokenizer` stand for what a harvest in memory was
    given. Until the last unit is committed the store is what it was before; then its
    manifest is replaced by one that names the earlier content id as its parent. The
    same call resumes.

    trust_remote_code: where the store was harvested with it, say it again, for a store
    may come from anyone.

    Returns the extended store.

    Raises:
        SpecError: neither or both of sites and tokens; SiteError: a site that the store
        has already.
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
            f"{storage.url}: the model {place(wanted.model.name)} is not the one"
            " harvested: its weights differ"
        )
    with ExitStack() as stack:
        tap = open_tap(
            loaded, wanted.sites, compiled=wanted.compile, context=wanted.context
        )
        stack.callback(tap.close)
        check_used(loaded, tap)
        first, reader, corpus = None, None, None
        if sites is None:
            reader, corpus = sequencer(
                wanted, loaded.tokenizer, source, loaded.info.vocabulary
            )
        ends = separator_token(reader) if reader is not None else None
        plan = make_plan(wanted, tap, loaded, corpus, source, device, ends)
        plan = extension_plan(plan, parent, adds_sites=sites is not None)
        if reader is not None:
            _same_corpus(plan, storage)
            first = first_block(reader, plan, _cursor(storage, parent))
            tap.check_padding(first.tokens)
        writer = StoreWriter.create(storage, plan, parent=parent)
        stack.callback(writer.close)
        Run(
            plan,
            writer,
            reader,
            tap,
            tokens_device(device, loaded),
            report,
            share,
            loaded.pad,
        ).run(first)
        return finished_store(writer, out, options, alone=share.of == 1)


def _check_asked(sites: Any, tokens: int | None, source: Any) -> None:
    """What an extension cannot be is said before the model is loaded. Raises SpecError."""
    if (sites is None) == (tokens is None):
        raise SpecError("extend wants either more sites or more tokens, one at a time")
    if source is not None:
        token_array(source)
        if sites is not None:
            raise SpecError(
                "source: more sites are harvested on the tokens that the store has;"
                " leave it out"
            )


def _extended(
    parent: StoreManifest, sites: str | tuple[str, ...] | None, tokens: int | None
) -> HarvestSpec:
    """What a store's harvest would have been with other sites, or with more tokens at
    the sites it has.
    """
    if sites is None:
        return parent.spec.model_copy(
            update={
                "tokens": tokens,
                "sites": tuple(site.name for site in parent.sites),
            }
        )
    return parent.spec.model_copy(
        update={"sites": (sites,) if isinstance(sites, str) else tuple(sites)}
    )


def _extendable(storage: Storage) -> StoreManifest:
    """The manifest of a harvested store, if what the new generation is added to is as
    it was recorded.

    Raises SpecError for an imported one, CorruptError.
    """
    found = read_manifest(storage)
    if found.imported is not None:
        raise SpecError(
            f"{storage.url}: this store was imported, so there is no model and no"
            " corpus to go on with; import all of it into a new store"
        )
    store = StoredObjects(storage, found)
    for name in COLUMNS:
        store.column(name)
    store.file(keys.merged_stats_key(len(found.generations) - 1))
    return found


def _cursor(storage: Storage, parent: StoreManifest) -> dict[str, Any]:
    """Where in the corpus the store ends."""
    key = keys.block_key(parent.n_units - 1)
    return dict(read_record(storage, key, BlockRecord, SMALL_JSON).cursor)


def _same_corpus(plan: Plan, storage: Storage) -> None:
    before = read_plan(storage)
    if before.corpus_digest is not None and plan.corpus_digest != before.corpus_digest:
        raise CorpusError(
            f"{storage.url}: the corpus {place(plan.spec.corpus.name)} is not what it"
            " was when the store was harvested (files were added, removed or changed);"
            " more tokens must come from the same corpus"
        )
