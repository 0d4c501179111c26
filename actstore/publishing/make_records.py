"""Makes the records that a catalog keeps of a store and of a run."""

from __future__ import annotations

from typing import Any

from actstore.catalog.published_run import (
    EVALUATION,
    RUN,
    check_weights,
    run_content_id,
)
from actstore.catalog.published_url import check_no_secret
from actstore.format.json_records import read_record
from actstore.format.manifest import read_manifest
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.store.store import Store
from actstore.validation import validated
from schemas.catalog import PublishedRun, PublishedStore, RunMetrics
from schemas.records import EvalRecord, RunRecord


def store_record(storage: Storage, values: dict[str, Any]) -> PublishedStore:
    """Return the record of a finished store.

    Args:
        storage: Where the store lies.
        values: The record's name, URL, and who publishes it when.

    Raises:
        NotAStoreError: There is no store.
        UnfinishedError: The harvest has not ended.
        CorruptError: Its manifest, or what it counts, cannot be.
        SpecError: A text of it cannot be recorded.
    """
    manifest = read_manifest(storage)
    Store(storage, manifest).check()
    spec = manifest.spec
    corpus = spec.corpus.name if manifest.imported is None else None
    for text in (spec.model.name, corpus or ""):
        check_no_secret(text, f"{storage.url}: model or corpus")
    figures = {
        "content_id": manifest.content_id,
        "model": spec.model.name,
        "corpus": corpus,
        "sites": tuple(site.name for site in manifest.sites),
        "rows": manifest.n_rows,
        "bytes": manifest.n_bytes,
        "dtype": spec.dtype,
    }
    return validated(PublishedStore, {**values, **figures}, storage.url)


def run_record(storage: Storage, values: dict[str, Any]) -> PublishedRun:
    """Return the record of a finished run, with its figures if it was evaluated.

    Args:
        storage: The run's folder.
        values: The record's name, URL, and who publishes it when.

    Raises:
        ObjectError: The run has not ended.
        CorruptError: A record of it cannot be, or its weights are not whole.
        SpecError: A text of it cannot be recorded.
    """
    run = read_record(storage, RUN, RunRecord, SMALL_JSON)
    check_weights(storage)
    for text in (run.model, run.store):
        check_no_secret(text, f"{storage.url}: model or store")
    figures = {
        "content_id": run_content_id(storage),
        "model": run.model,
        "sites": run.sites,
        "sae": run.sae.kind,
        "n_latents": run.n_latents,
        "steps": run.steps,
        "rows": run.rows,
        "store": run.store,
        "store_content_id": run.content_id,
        "metrics": _metrics(storage),
    }
    return validated(PublishedRun, {**values, **figures}, storage.url)


def _metrics(storage: Storage) -> RunMetrics | None:
    """Return the figures of a run's evaluation; None where it has none."""
    if not storage.exists(EVALUATION):
        return None
    found = read_record(storage, EVALUATION, EvalRecord, SMALL_JSON)
    effect = found.model_pooled
    return RunMetrics.model_validate(
        {
            "split": found.split,
            "rows": found.rows,
            "fvu": found.pooled.fvu,
            "l0": found.pooled.l0,
            "ce_recovered": None if effect is None else effect.recovered_zero,
            "dead": found.dead,
        }
    )
