"""The steps that `harvest` and `extend` have in common.

They go from a loaded model to its tap, and from a plan to a finished store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from actstore.errors import OthersUnfinishedError, UnfinishedError
from actstore.harvesting.harvest_warnings import warn_of_non_finite
from actstore.harvesting.progress import Report
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker import Worker
from actstore.harvesting.worker_share import Share
from actstore.model.forward import device_of
from actstore.model.load_model import LoadedModel
from actstore.model.loaded_weights import check_used
from actstore.model.open_tap import open_tap
from actstore.model.tap import Tap
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from actstore.text.sequences import Sequencer, TokenBlock
from schemas.harvest import HarvestSpec


@contextmanager
def checked_tap(loaded: LoadedModel, spec: HarvestSpec) -> Iterator[Tap]:
    """Give the tap at a spec's sites, and remove its hooks afterwards.

    Raises:
        SiteError, SpecError, ModelError: See `open_tap`.
        ModelError: The sites depend on weights that the checkpoint does not have.
    """
    tap = open_tap(loaded, spec.sites, compiled=spec.compile, context=spec.context)
    try:
        check_used(loaded, tap)
        yield tap
    finally:
        tap.close()


def run_plan(
    writer: StoreWriter,
    loaded: LoadedModel,
    tap: Tap,
    source: Sequencer | None,
    first: TokenBlock | None,
    *,
    device: str,
    share: Share,
    report: Report,
    out: str | os.PathLike[str],
    options: Mapping[str, Any] | None,
) -> Store:
    """Harvest a worker's share of a plan; return the store, if it is finished then.

    Args:
        writer: Writes the store, and has its plan.
        loaded: The model.
        tap: Its sites.
        source: The corpus; None where the token blocks are all there.
        first: The plan's first block, where it has been read already.
        device: Where the model was put; `auto`: over all GPUs.
        share: Which units are this worker's.
        report: Called after every batch.
        out: The store's URL.
        options: For its file system.

    Raises:
        OthersUnfinishedError: Other workers still have units.
    """
    # With `auto` the tokens go to where the first part of the model is.
    token_device = (
        torch.device(device) if device != "auto" else device_of(loaded.module)
    )
    worker = Worker(
        plan=writer.plan,
        writer=writer,
        source=source,
        tap=tap,
        device=token_device,
        report=report,
        share=share,
        pad=loaded.pad,
    )
    worker.run(first)
    return _finished_store(writer, out, options, is_alone=share.of == 1)


def _finished_store(
    writer: StoreWriter,
    out: str | os.PathLike[str],
    options: Mapping[str, Any] | None,
    *,
    is_alone: bool,
) -> Store:
    """Finish the store and open it."""
    missing = writer.missing_units()
    if missing != 0:
        raise _unfinished(writer.storage.url, missing, is_alone=is_alone)
    writer.finish()
    store = open_store(out, dict(options or {}))
    warn_of_non_finite(store)
    return store


def _unfinished(
    url: str, missing: int | None, *, is_alone: bool
) -> UnfinishedError | OthersUnfinishedError:
    """Return the error for units that are missing when this worker's are done.

    missing: how many; None: it is not known where the corpus ends.
    """
    if is_alone:
        return UnfinishedError(
            f"{url}: the corpus has ended, but the last token block there does not say"
            " so, as an earlier version could leave it; harvest into another place"
        )
    left = "other workers' units"
    if missing is not None:
        left = f"{missing} units of other workers"
    return OthersUnfinishedError(
        f"{url}: this worker's share is done; {left} are still missing. The worker that"
        " commits the last one finishes the store; a harvest without --worker takes"
        " over whatever is left"
    )
