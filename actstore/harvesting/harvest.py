"""Harvesting into a new store.

Corpus, model and sites become a plan, and the plan becomes a store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from torch import nn

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.engines.engine_option import EngineOptions, engine_options
from actstore.errors import SpecError
from actstore.format.storage import Storage
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.progress import Report, silent
from actstore.harvesting.run_plan import run_plan
from actstore.harvesting.store_writer import StoreWriter, check_unfinished
from actstore.harvesting.tried_harvest import tried_harvest
from actstore.harvesting.worker_share import check_shared, parse_worker
from actstore.store.store import Store
from schemas.harvest import HarvestSpec


@checked(
    out=arguments.folder,
    model=optional(arguments.module),
    device=arguments.device,
    worker=optional(arguments.text_such_as("3/8")),
    engine=optional(arguments.text_such_as("ray")),
    workers=optional(arguments.count),
    slurm=optional(arguments.mapping),
    options=optional(arguments.mapping),
    progress=optional(arguments.callback),
)
def harvest(
    spec: HarvestSpec | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    tokens: Any = None,
    tokenizer: Any = None,
    device: str = "cpu",
    worker: str | None = None,
    engine: str | None = None,
    workers: int | None = None,
    slurm: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Store:
    """Run a language model over a corpus and keep the activations of some sites.

    An unfinished harvest of the same spec at `out` goes on where it stopped.

    Args:
        spec: What to harvest: a HarvestSpec, or a dict of its fields (`model` and
            `corpus` may be plain names).
        out: Where the store goes: a folder, or any fsspec URL.
        model: Instead of `spec.model`, a module in memory. Sites are TransformerLens
            hook names (of a Hugging Face model whose family it knows, a
            TransformerBridge or a HookedTransformer), or the names of the module's
            submodules (see `actstore.model.open_tap.open_tap`). The forward of a
            module that is no Hugging Face model must accept int64 [b, t].
        tokens: Instead of `spec.corpus`, an integer array or tensor, or an iterable of
            documents (texts, or sequences of token ids). An array is [n, context], one
            sequence a row, or [n], a stream that is cut into contexts. In [n, context],
            -1 is padding, before or after a row's tokens; rows that are padded on the
            left are moved to the left, so that position 0 is a row's first token.
        tokenizer: The tokenizer of `model`, where there is one.
        device: Where the model runs: `cpu`, `cuda`, `cuda:1`, or `auto`, over all GPUs.
        worker: `3/8`: this is the third of eight workers, and it takes the units k with
            k mod 8 = 2. Any of them may die and be started again; the one that sees the
            last unit committed finishes the store. None: every unit that is left.
        engine: `ray` (on this machine), `ray:ADDRESS` (a cluster) or `slurm`: what
            places workers on machines, all of which have to see `out`. None: this
            process is the only worker.
        workers: How many workers an engine has at once; None: as many as it has room
            for.
        slurm: Options of the engine Slurm: `partition`, `time`, `account`.
        options: For the file system of `out`.
        progress: Called after every batch, from the calling thread.

    Returns:
        The finished store. A HarvestWarning tells where the corpus ended before
        `spec.tokens` were reached, and where rows hold a NaN or an infinity.

    Raises:
        SpecError, SiteError, ModelError, CorpusError, NumericsError: See
            `actstore.errors`. A site without a finite row is a NumericsError, which is
            raised after the first rows.
        ExistsError: A finished store, another harvest, or other files are at `out`.
        StorageError: The disk is full (FullError), or the like; the same call goes on
            later.
        OthersUnfinishedError: This worker's units are done, and other workers still
            have some.

    Examples:
        >>> import actstore
        >>> store = actstore.harvest(
        ...     {
        ...         "model": "builtin:mini",
        ...         "corpus": "builtin:stdlib",
        ...         "sites": "blocks.*.hook_mlp_out",
        ...         "tokens": 2048,
        ...     },
        ...     "activations",
        ... )
        >>> len(store.sites)
        6
        >>> store.manifest.n_rows
        2048
    """
    report = progress or silent
    harvest_spec = resolve_spec(spec, model, tokens)
    share = parse_worker(worker)
    storage = Storage(out, dict(options or {}))
    # Before the model is loaded, which may take minutes.
    check_unfinished(storage)
    placed = engine_options(engine, workers, slurm, device=device)
    if placed is not None:
        from actstore.harvesting.harvest_on_engine import harvest_on_engine

        _check_placeable(placed, model, tokens, tokenizer, worker)
        return harvest_on_engine(
            harvest_spec,
            os.fspath(out),
            placed,
            device=device,
            options=options,
            report=report,
        )
    check_shared(storage, share)
    with (
        tried_harvest(harvest_spec, device, report, model, tokens, tokenizer) as tried,
        closing(
            StoreWriter.create(storage, tried.plan, tried.tokenizer_files)
        ) as writer,
    ):
        return run_plan(
            writer,
            tried.loaded,
            tried.tap,
            tried.source,
            tried.first,
            device=device,
            share=share,
            report=report,
            out=out,
            options=options,
        )


def _check_placeable(
    placed: EngineOptions,
    model: object,
    tokens: object,
    tokenizer: object,
    worker: object,
) -> None:
    """Raise SpecError for what does not go to other machines."""
    in_memory = {"model": model, "tokens": tokens, "tokenizer": tokenizer}
    for name, value in in_memory.items():
        if value is not None:
            raise SpecError(
                f"{name}: with an engine ({placed.engine.kind}), what is in this"
                " process' memory cannot be harvested; name it in the spec"
            )
    if worker is not None:
        raise SpecError(
            "--worker: an engine shares the work by itself; leave --worker or --engine"
            " out"
        )
