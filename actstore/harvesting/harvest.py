"""The composition of a harvest: tokens -> tap -> rows -> unit writer. `worker.py` has
what one worker does.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from actstore.errors import (
    OthersUnfinishedError,
    UnfinishedError,
)
from actstore.format.storage import Storage
from actstore.harvesting.harvest_plan import make_plan, parse_worker
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.inert_fields import check_acts
from actstore.harvesting.store_writer import StoreWriter, check_unfinished
from actstore.harvesting.worker import (
    Progress,
    Report,
    Run,
    first_block,
    tell_non_finite,
)
from actstore.model.forward import device_of
from actstore.model.load_model import LoadedModel, loaded_model, tokenizer_files
from actstore.model.loaded_weights import check_used
from actstore.model.open_tap import open_tap
from actstore.text.sequences import separator_token, sequencer
from schemas.harvest import HarvestSpec

if TYPE_CHECKING:
    from actstore.store.store import Store


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
    """Run a language model over a corpus and keep the activations of some sites in a
    store at `out`.

    spec: a HarvestSpec or a dict of its fields (`model` and `corpus` may be plain
    names). `out`: any fsspec URL; `options` go to its file system. An unfinished
    harvest of the same spec there goes on where it stopped.

    model: instead of `spec.model`, a module in memory. Sites are TransformerLens hook
    names (of a Hugging Face model whose family it knows, a TransformerBridge or a
    HookedTransformer) or the names of the module's submodules; the forward of one that
    is no Hugging Face model must accept int64 [b, t]. See
    `actstore.model.open_tap.open_tap`. tokens: instead of `spec.corpus`, an integer
    array or tensor [n, context] (one sequence a row) or [n] (a stream, cut into
    contexts), or an iterable of documents (texts or sequences of token ids). In an
    array [n, context] -1 is padding, before or behind a row's tokens; rows padded on
    the left are moved to the left, and so they are in the store: position 0 is a row's
    first token. worker: "3/8": this is the third of eight workers; it takes the units k
    with k mod 8 = 2. Any of them may die and be started again; the one that sees the
    last unit committed finishes the store. Without it, every unit that is left.
    progress: called after every batch, from the calling thread.

    Returns the finished store. Warns (HarvestWarning) where the corpus ends before
    `spec.tokens` are reached, and where rows hold a NaN or an infinity.

    Raises:
        SpecError, SiteError, ModelError, CorpusError, NumericsError: see
            `actstore.errors`. A site of which no row is finite is a NumericsError, told
            with the first rows.
        ExistsError: a finished store, another harvest, or other files are at `out`.
        StorageError: the disk is full (FullError), or the like; the same call goes on
        later.
        OthersUnfinishedError: this worker's units are done, and other workers still
        have some.
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
        tap = open_tap(
            loaded, wanted.sites, compiled=wanted.compile, context=wanted.context
        )
        stack.callback(tap.close)
        check_used(loaded, tap)
        plan = make_plan(
            wanted, tap, loaded, corpus, tokens, device, separator_token(source)
        )
        report(Progress("reading the corpus"))
        first = first_block(source, plan)
        tap.check_padding(first.tokens)
        writer = StoreWriter.create(storage, plan, tokenizer_files(loaded.tokenizer))
        stack.callback(writer.close)
        Run(
            plan,
            writer,
            source,
            tap,
            tokens_device(device, loaded),
            report,
            share,
            loaded.pad,
        ).run(first)
        return finished_store(writer, out, options, alone=share.of == 1)


def finished_store(
    writer: StoreWriter, out: str, options: Mapping[str, Any] | None, *, alone: bool
) -> Store:
    from actstore.store.open_store import open as open_store

    missing = writer.missing_units()
    if missing != 0 and alone:
        raise UnfinishedError(
            f"{writer.storage.url}: the corpus has ended, but the last token block"
            " there does not say so, as an earlier version could leave it; harvest"
            " into another place"
        )
    if missing != 0:
        left = (
            "other workers' units"
            if missing is None
            else f"{missing} units of other workers"
        )
        raise OthersUnfinishedError(
            f"{writer.storage.url}: this worker's share is done; {left} are still"
            " missing. The worker that commits the last one finishes the store; a"
            " harvest without --worker takes over whatever is left"
        )
    writer.finish()
    store = open_store(out, dict(options or {}))
    tell_non_finite(store)
    return store


def tokens_device(device: str, loaded: LoadedModel) -> torch.device:
    """Where tokens go: the device, or with `auto` that of the model's first part."""
    return torch.device(device) if device != "auto" else device_of(loaded.module)
