"""Where an SAE comes from: what its exports say about its run, its store and its evaluation."""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3
from torch import Tensor

from actstore.errors import StoreError
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.manifest import StoreManifest
from schemas.records import EvalRecord, RunRecord
from trainer.errors import ExchangeError
from trainer.weights import parsed_tensors

FILES = ("sae.json", "sae.safetensors")


class Origin(NamedTuple):
    """run_id: blake3 of the run's record and weights; firings: int64 [n_layers, m], rows: int64 [n_layers]."""

    record: RunRecord
    run_id: str
    manifest: StoreManifest | None
    evaluation: EvalRecord | None
    firings: Tensor | None
    rows: Tensor | None
    files: dict[str, bytes]


def read_origin(run: str, store: str | None = None) -> Origin:
    """A finished run's origin; its store (or where it lies now, `store`) adds the corpus, if it can be opened.

    Raises ExchangeError where `store` is not the store that the run was trained from.
    """
    storage = Storage(run)
    files = {name: storage.read(name) for name in FILES}
    record = validated_json(RunRecord, files["sae.json"], f"{run}/sae.json")
    evaluation, firings, rows = None, None, None
    if storage.exists("eval.json"):
        files["eval.json"] = storage.read("eval.json")
        evaluation = validated_json(EvalRecord, files["eval.json"], f"{run}/eval.json")
    if storage.exists("latents.safetensors"):
        files["latents.safetensors"] = storage.read("latents.safetensors")
        latents = parsed_tensors(files["latents.safetensors"], f"{run}/latents.safetensors", ("firings", "rows"))
        firings, rows = latents["firings"], latents["rows"]
    run_id = blake3(b"".join(files[name] for name in FILES)).hexdigest()
    return Origin(record, run_id, _manifest(record, store), evaluation, firings, rows, files)


def folder_name(record: RunRecord, i: int) -> str:
    """The folder of a layer: its site, and the site that a transcoder reconstructs from it."""
    return f"{record.sites[i]}--{record.targets[i]}" if record.targets else record.sites[i]


def _manifest(record: RunRecord, store: str | None) -> StoreManifest | None:
    """The store's manifest; None where the run names no store, or it is not there any more."""
    where = store or record.store
    if not where:
        return None
    try:
        manifest = read_manifest(Storage(where))
    except StoreError:
        if store is not None:
            raise
        return None
    followed = f"followed-{manifest.generations[0].plan_digest}"  # of a run that trained while it was harvested
    if record.content_id not in {manifest.content_id, followed}:
        if store is None:  # another store lies there by now; the run's own content id still stands in the export
            return None
        raise ExchangeError(
            f"{store}: its content id is {manifest.content_id}, but the run was trained from {record.content_id}"
        )
    return manifest
