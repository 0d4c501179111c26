"""Where an SAE comes from: what its exports say about its run, its store and its
evaluation.
"""

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
from trainer.runs.run_store import is_of, store_of
from trainer.runs.run_tensors import (
    LATENTS,
    most_bytes,
    most_latents_bytes,
    parsed_tensors,
)


class Origin(NamedTuple):
    """run_id: blake3 of the run's record and weights; firings: int64 [n_layers, m],
    rows: int64 [n_layers].
    """

    record: RunRecord
    run_id: str
    manifest: StoreManifest | None
    evaluation: EvalRecord | None
    firings: Tensor | None
    rows: Tensor | None
    files: dict[str, bytes]


def read_origin(run: str, store: str | None = None) -> Origin:
    """A finished run's origin; its store (or where it lies now, `store`) adds the
    corpus, if it can be opened. What is for others to read has no paths of this machine
    (`trainer/runs/published_names.py`).

    Raises ExchangeError where `store` is not the store that the run was trained from.
    """
    storage = Storage(run)
    files = {"sae.json": storage.read("sae.json", SMALL_JSON)}
    record = validated_json(RunRecord, files["sae.json"], f"{run}/sae.json")
    files["sae.safetensors"] = storage.read(
        "sae.safetensors", most_bytes(record, f"{run}/sae.json")
    )
    run_id = blake3(b"".join(files.values())).hexdigest()
    manifest, record = _manifest(run, record, store), published_names.record(record)
    files["sae.json"] = record.to_json().encode()
    evaluation, firings, rows = None, None, None
    if storage.exists("eval.json"):
        evaluation = published_names.evaluation(
            read_json(storage, "eval.json", EvalRecord)
        )
        files["eval.json"] = evaluation.to_json().encode()
    if storage.exists(LATENTS):
        files[LATENTS] = storage.read(LATENTS, most_latents_bytes(record))
        latents = parsed_tensors(
            files[LATENTS], f"{run}/{LATENTS}", ("firings", "rows")
        )
        firings, rows = latents["firings"], latents["rows"]
    return Origin(record, run_id, manifest, evaluation, firings, rows, files)


def folder_name(record: RunRecord, i: int) -> str:
    """The folder of a layer: its site, and the site that a transcoder reconstructs from
    it.
    """
    return (
        f"{record.sites[i]}--{record.targets[i]}" if record.targets else record.sites[i]
    )


def _manifest(run: str, record: RunRecord, store: str | None) -> StoreManifest | None:
    """The store's manifest; None where the run names no store, or it is not there any
    more: the run's own content id still stands in the export.
    """
    if store is None:
        with suppress(RunError, StoreError):
            return store_of(run, record).store.manifest
        return None
    manifest = read_manifest(Storage(store))
    if not is_of(record.content_id, manifest):
        raise ExchangeError(
            f"{store}: its content id is {manifest.content_id}, but the run was trained"
            f" from {record.content_id}"
        )
    return manifest
