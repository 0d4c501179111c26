"""Adding to a finished store: more sites on its tokens, or more tokens at its sites."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from torch import nn

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import CorpusError, ModelError, SpecError
from actstore.format import object_keys
from actstore.format.json_records import read_record
from actstore.format.manifest import read_manifest, read_plan
from actstore.format.object_sizes import COLUMNS, SMALL_JSON
from actstore.format.storage import Storage
from actstore.format.token_ids import token_array
from actstore.harvesting.block_source import first_block
from actstore.harvesting.harvest_plan import extension_plan, make_plan
from actstore.harvesting.progress import Progress, Report, silent
from actstore.harvesting.run_plan import checked_tap, run_plan
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker_share import check_shared, parse_worker
from actstore.model.checkpoint_files import confirm_code
from actstore.model.load_model import LoadedModel, load_or_wrap
from actstore.model.model_folder import name_with_path
from actstore.store.open_store import store_url
from actstore.store.store import Store
from actstore.store.stored_objects import StoredObjects
from actstore.text.corpora import Corpus
from actstore.text.sequences import Sequencer, TokenBlock, separator_token, sequencer
from actstore.validation import validated
from schemas.harvest import HarvestSpec, Plan
from schemas.manifest import BlockRecord, StoreManifest


@checked(
    out=arguments.folder,
    sites=optional(arguments.names),
    tokens=optional(arguments.count),
    trust_remote_code=arguments.flag,
    model=optional(arguments.module),
    device=arguments.device,
    worker=optional(arguments.text_such_as("3/8")),
    options=optional(arguments.mapping),
    progress=optional(arguments.callback),
)
def extend(
    out: str | os.PathLike[str],
    *,
    sites: str | Sequence[str] | None = None,
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
    """Add to a finished store: more sites, or more tokens.

    More `sites` are harvested on the tokens and rows that the store has, more `tokens`
    at the sites that it has, from where in the corpus it ended. Until the last unit is
    committed the store is what it was before; then its manifest is replaced by one that
    names the earlier content id as its parent. The same call resumes.

    Args:
        out: The store: a folder, any fsspec URL, or its name in the catalog.
        sites: Names or patterns of the sites to add.
        tokens: How many tokens to add.
        model: The module that was harvested from memory, if it was.
        source: The tokens that were harvested from memory, if they were; with `tokens`.
        tokenizer: The tokenizer of `model`, where there is one.
        trust_remote_code: Run code that comes with the model. To be said again where
            the store was harvested with it, because a store may come from anyone.
        device: Where the model runs: `cpu`, `cuda`, `cuda:1`, or `auto`, over all GPUs.
        worker: `3/8`: this is the third of eight workers (see `harvest`).
        options: For the file system of `out`.
        progress: Called after every batch, from the calling thread.

    Returns:
        The extended store.

    Raises:
        SpecError: Neither or both of sites and tokens are given, or the store was
            imported, or is a part of another.
        SiteError: The store has a site already, or the model does not have it.
        ModelError: The model is not the one that was harvested: its weights differ.
        CorpusError: The corpus is another, or nothing is left in it.
        StorageError, OthersUnfinishedError: As for `harvest`.

    Examples:
        >>> import actstore
        >>> store = actstore.harvest(
        ...     {
        ...         "model": "builtin:mini",
        ...         "corpus": "builtin:stdlib",
        ...         "sites": "blocks.0.hook_mlp_out",
        ...         "tokens": 1024,
        ...     },
        ...     "growing",
        ... )
        >>> store = actstore.extend("growing", sites="blocks.1.hook_mlp_out")
        >>> store.sites
        ('blocks.0.hook_mlp_out', 'blocks.1.hook_mlp_out')

        More tokens at these sites: `actstore.extend("growing", tokens=1024)`.
    """
    _check_asked(sites, tokens, source)
    report = progress or silent
    given = dict(options or {})
    storage = Storage(store_url(os.fspath(out), given), given)
    share = parse_worker(worker)
    parent = _extendable(storage)
    check_shared(storage, share)
    spec = _extended_spec(parent, sites, tokens)
    # A module in memory has been loaded by the user, with whatever code it has.
    if model is None or trust_remote_code:
        confirm_code(parent.spec.model, trust_remote_code, storage.url)
    report(Progress("loading the model"))
    loaded = load_or_wrap(spec.model, model, tokenizer, device)
    _check_same_model(loaded, parent, storage.url)
    with checked_tap(loaded, spec) as tap:
        # More sites are harvested on the token blocks that are there.
        reader: Sequencer | None = None
        corpus: Corpus | None = None
        separator: int | None = None
        first: TokenBlock | None = None
        if sites is None:
            # More tokens: read on where the store's corpus was left.
            reader, corpus = sequencer(
                spec, loaded.tokenizer, source, loaded.info.vocabulary
            )
            separator = separator_token(reader)
        new_plan = make_plan(spec, tap, loaded, corpus, source, device, separator)
        plan = extension_plan(new_plan, parent, adds_sites=sites is not None)
        if reader is not None:
            _check_same_corpus(plan, storage)
            first = first_block(reader, plan, _cursor_at_end(storage, parent))
            tap.check_padding(first.tokens)
        with closing(StoreWriter.create(storage, plan, parent=parent)) as writer:
            return run_plan(
                writer,
                loaded,
                tap,
                reader,
                first,
                device=device,
                share=share,
                report=report,
                out=out,
                options=options,
            )


def _check_asked(
    sites: str | Sequence[str] | None, tokens: int | None, source: Any
) -> None:
    """Raise SpecError for what no extension can be, before the model is loaded."""
    if (sites is None) == (tokens is None):
        raise SpecError("extend wants either more sites or more tokens, one at a time")
    if source is None:
        return
    # It refuses what holds no tokens.
    token_array(source)
    if sites is not None:
        raise SpecError(
            "source: more sites are harvested on the tokens that the store has; leave"
            " it out"
        )


def _extendable(storage: Storage) -> StoreManifest:
    """Return the manifest of a store that can be extended.

    What the new generation builds on is read, so that it is held against its digests
    before hours are spent.

    Raises:
        SpecError: The store was imported, or is a part of another.
        CorruptError: Columns or statistics are not what was recorded.
    """
    manifest = read_manifest(storage)
    if manifest.imported is not None:
        raise SpecError(
            f"{storage.url}: this store was imported, so there is no model and no"
            " corpus to go on with; import all of it into a new store"
        )
    if manifest.subset is not None:
        raise SpecError(
            f"{storage.url}: this store is a part of another one (content id"
            f" {manifest.subset.parent[:12]}); extend that, and copy again"
        )
    objects = StoredObjects(storage, manifest)
    for name in COLUMNS:
        objects.column(name)
    last_generation = len(manifest.generations) - 1
    objects.file(object_keys.merged_stats_key(last_generation))
    return manifest


def _extended_spec(
    parent: StoreManifest, sites: str | Sequence[str] | None, tokens: int | None
) -> HarvestSpec:
    """Return the spec that would have harvested just what is to be added."""
    changes: dict[str, Any]
    if sites is None:
        known_sites = tuple(site.name for site in parent.sites)
        changes = {"tokens": tokens, "sites": known_sites}
    else:
        changes = {"sites": sites}
    # What is asked for comes from a user, so it is checked as in a spec of its own; all
    # else stays as it was recorded, down to what was set and what was left out.
    whole = {**parent.spec.model_dump(), **changes}
    checked = validated(HarvestSpec, whole, "extend")
    asked = {name: getattr(checked, name) for name in changes}
    return parent.spec.model_copy(update=asked)


def _check_same_model(loaded: LoadedModel, parent: StoreManifest, url: str) -> None:
    if loaded.info.weights_digest != parent.model.weights_digest:
        raise ModelError(
            f"{url}: the model {name_with_path(parent.spec.model.name)} is not the one"
            " harvested: its weights differ"
        )


def _check_same_corpus(plan: Plan, storage: Storage) -> None:
    harvested = read_plan(storage)
    # Some corpora do not say what identifies their contents.
    if harvested.corpus_digest is None:
        return
    if plan.corpus_digest != harvested.corpus_digest:
        raise CorpusError(
            f"{storage.url}: the corpus {name_with_path(plan.spec.corpus.name)} is not"
            " what it was when the store was harvested (files were added,"
            " removed or changed); more tokens must come from the same corpus"
        )


def _cursor_at_end(storage: Storage, parent: StoreManifest) -> dict[str, Any]:
    """Return where in the corpus the store ends, which its last token block tells."""
    key = object_keys.block_key(parent.n_units - 1)
    record = read_record(storage, key, BlockRecord, SMALL_JSON)
    return dict(record.cursor)
