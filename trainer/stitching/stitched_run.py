"""Writes the run that was stitched from several."""

from __future__ import annotations

from typing import NamedTuple

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.format.storage import Storage
from schemas.records import RunRecord, StitchRecord
from trainer.errors import RunError
from trainer.imports.import_sae import to_sae
from trainer.runs.run_store import origin_of
from trainer.saes.build import Sae
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.pair import Opened

RECORD = "stitch.json"
ORIGINS = "stitch.safetensors"
WEIGHTS = "sae.safetensors"
_OURS = {RECORD, ORIGINS, WEIGHTS}


class Stitched(NamedTuple):
    """Latents of several dictionaries as one.

    Attributes:
        latents: The dictionary.
        run: For each latent the number of its run, int64 [m].
        latent: For each latent its number in that run, int64 [m].
        without_direction: Of each run, latents that have no direction.
    """

    latents: Dictionary
    run: Tensor
    latent: Tensor
    without_direction: tuple[int, ...]


def check_empty(out: str) -> None:
    """Raise RunError where a folder holds more than an attempt that was cut short."""
    names = set(Storage(out).list(""))
    if names - _OURS:
        raise RunError(f"{out}: it is not empty; choose another --out")


def write_run(
    out: str,
    opened: Opened,
    trained: Dictionary,
    whole: Stitched,
    stitch: StitchRecord,
) -> None:
    """Write the run's folder; `sae.json` last."""
    sae = to_sae(trained.to("cpu").plain(), out)
    record = _run_record(out, opened, sae, stitch)
    tensors = {
        name: value.detach().contiguous() for name, value in sae.state_dict().items()
    }
    tensors["scale"] = torch.ones(1)
    origins = {"run": whole.run, "latent": whole.latent}
    storage = Storage(out)
    storage.put(ORIGINS, save_tensors(origins))
    storage.put(RECORD, stitch.to_json().encode())
    storage.put(WEIGHTS, save_tensors(tensors))
    storage.put("sae.json", record.to_json().encode())


def _run_record(out: str, opened: Opened, sae: Sae, stitch: StitchRecord) -> RunRecord:
    origin = origin_of(opened.rows.store, out)
    first = opened.sides[0].sae.record
    # Retraining has no penalty. Without one, an L0 would seem to be asked for.
    no_penalty = {sae.spec.penalty_field: 0.0}
    return RunRecord(
        sae=sae.spec.model_copy(update=no_penalty),
        d=first.d,
        n_latents=sae.n_latents,
        sites=(opened.rows.site,),
        rescale="none",
        center=False,
        filter=first.filter,
        store=origin.store,
        store_path=origin.store_path,
        content_id=origin.content_id,
        model=first.model,
        steps=-(-stitch.retrained_rows // stitch.batch),
        rows=stitch.retrained_rows,
        seed=stitch.seed,
        lr=stitch.lr if stitch.retrained_rows else None,
    )
