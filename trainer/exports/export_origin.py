"""Collects what an export says of an SAE: its run, its store and its evaluation."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from blake3 import blake3
from torch import Tensor

from actstore.errors import StoreError
from actstore.format.manifest import read_manifest
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.manifest import StoreManifest
from schemas.records import EvalRecord, RunRecord
from trainer.errors import ExchangeError, RunError
from trainer.runs import published_names
from trainer.runs.run_files import read_json
from trainer.runs.run_store import is_store_of, store_of
from trainer.runs.run_tensors import (
    LATENTS,
    most_bytes,
    most_latents_bytes,
    parsed_tensors,
)


class Origin(NamedTuple):
    """The origin of an SAE; no path of this machine is in it.

    Attributes:
        record: The run's record.
        run_id: blake3 digest of the run's record and weights, as they are in the run.
        manifest: The store's manifest, or None where the store cannot be opened.
        evaluation: The run's evaluation, or None.
        firings: The number of rows on which each latent fired, by layer,
            int64 [n_layers, m], or None.
        rows: The number of evaluated rows of each layer, int64 [n_layers], or None.
        files: The run's files, by name.
    """

    record: RunRecord
    run_id: str
    manifest: StoreManifest | None
    evaluation: EvalRecord | None
    firings: Tensor | None
    rows: Tensor | None
    files: dict[str, bytes]


def read_origin(run: str, store: str | None = None) -> Origin:
    """Read what an export says of a finished run.

    Args:
        run: The run's folder.
        store: Where its store lies now; None for where it was. The store adds the
            corpus, if it can be opened.

    Raises:
        ExchangeError: `store` is not the store that the run was trained from.
        RunError: A file of the run is damaged.
    """
    storage = Storage(run)
    files = {"sae.json": storage.read("sae.json", SMALL_JSON)}
    record = validated_json(RunRecord, files["sae.json"], f"{run}/sae.json")
    files["sae.safetensors"] = storage.read(
        "sae.safetensors", most_bytes(record, f"{run}/sae.json")
    )
    run_id = blake3(b"".join(files.values())).hexdigest()
    manifest = _manifest(run, record, store)
    # From here on paths of this machine are left out, in the files too.
    record = published_names.record(record)
    files["sae.json"] = record.to_json().encode()
    evaluation = None
    if storage.exists("eval.json"):
        evaluation = read_json(storage, "eval.json", EvalRecord)
        evaluation = published_names.evaluation(evaluation)
        files["eval.json"] = evaluation.to_json().encode()
    firings = None
    rows = None
    if storage.exists(LATENTS):
        files[LATENTS] = storage.read(LATENTS, most_latents_bytes(record))
        latents = parsed_tensors(
            files[LATENTS], f"{run}/{LATENTS}", ("firings", "rows")
        )
        firings = latents["firings"]
        rows = latents["rows"]
    return Origin(record, run_id, manifest, evaluation, firings, rows, files)


def folder_name(record: RunRecord, index: int) -> str:
    """Return the folder of a layer: its site, and a transcoder's target after it."""
    site = record.sites[index]
    return f"{site}--{record.targets[index]}" if record.targets else site


def _manifest(run: str, record: RunRecord, store: str | None) -> StoreManifest | None:
    """Return the store's manifest.

    None if the run names no store, or the store is gone: the export still has its
    content id.
    """
    if store is None:
        with suppress(RunError, StoreError):
            return store_of(run, record).store.manifest
        return None
    manifest = read_manifest(Storage(store))
    if not is_store_of(record.content_id, manifest):
        raise ExchangeError(
            f"{store}: its content id is {manifest.content_id}, but the run was trained"
            f" from {record.content_id}; give the run's own store, or leave it out"
        )
    return manifest
