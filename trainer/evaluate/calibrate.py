"""`trainer calibrate`: thresholds of a trained or imported SAE, set so that rows of a
store have a wanted L0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import EvalRecord
from trainer.errors import RunError
from trainer.evaluate.row_metrics import blocks, holds_out, rows_of
from trainer.runs.run_store import check_fits
from trainer.runs.run_tensors import LATENTS, most_bytes, read_tensors
from trainer.runs.trained_sae import TrainedSae, load
from trainer.saes.build import latents_of, raise_thresholds
from trainer.saes.ops import ScaledRows
from trainer.saes.topk import TopKSae
from trainer.training.calibration import ROWS, SPARES, Levels, wanted_l0

OFF = 0.1  # of the wanted L0


@torch.no_grad()
def calibrate(
    sae: TrainedSae, store: Store, l0: float | None = None, all_rows: bool = False
) -> float:
    """Move the thresholds of `sae`, in place, to a mean L0 over held-out rows; returns
    that L0.

    l0: None for the one that its spec asks for. ScaledRows are those that its filter
    keeps, unless `all_rows`.

    Raises RunError where it asks for none, or has no threshold.
    """
    if isinstance(latents_of(sae.sae), TopKSae):
        raise RunError(f"{sae.url}: topk has no threshold; each row has its k latents")
    l0 = asked_l0(sae) if l0 is None else l0
    if l0 is None:
        raise RunError(
            f"{sae.url}: its spec asks for no L0 (it is imported, or has a fixed"
            " penalty); say which with --l0"
        )
    reached = False
    for spare in SPARES if l0 < sae.n_latents else ():
        levels = Levels(sae.sae, l0, spare)
        for rows in _rows(sae, store, all_rows):
            levels.add(rows, levels.counts(rows))
        if reached := levels.enough():
            break
    if not reached:
        raise RunError(
            f"{sae.url}: an L0 of {l0:g} cannot be reached with its {sae.n_latents}"
            " latents; lower --l0"
        )
    raise_thresholds(sae.sae, levels.found())
    return l0


def asked_l0(sae: TrainedSae) -> float | None:
    """The mean L0 that an SAE is to have: that of its last calibration, else of its
    spec; None for an imported one.
    """
    if sae.record.calibrated_l0 is not None:
        return sae.record.calibrated_l0
    return wanted_l0(sae.spec) if sae.record.steps else None


def check_filtered(runs: Sequence[str], all_rows: bool) -> None:
    """Raises RunError where `all_rows` would change nothing: none of the runs was
    trained with a filter.
    """
    if all_rows and all(load(run).record.filter is None for run in runs):
        raise RunError(
            f"--all-rows: no filter left rows out of the training of {', '.join(runs)};"
            " leave it out"
        )


def off_target(record: EvalRecord, wanted: float | None) -> str | None:
    """A warning where the L0 is more than 10 % off the one that the run's spec asks
    for.
    """
    l0 = record.pooled.l0
    if wanted is None or abs(l0 / wanted - 1) <= OFF:
        return None
    return (
        f"L0 is {l0:.1f}, {abs(l0 / wanted - 1):.0%} off the {wanted:g} that it is set"
        " for, so its figures do not compare with those of that L0; `trainer calibrate"
        f" {record.run}` sets its thresholds anew"
    )


def write(run: str, sae: TrainedSae, l0: float) -> None:
    """The SAE's new thresholds into its run; what was evaluated with the old ones is
    taken away.
    """
    storage = Storage(run)
    old = read_tensors(
        storage, "sae.safetensors", limit=most_bytes(sae.record, f"{run}/sae.json")
    )
    new = {
        name: value.detach().cpu().contiguous()
        for name, value in sae.sae.state_dict().items()
    }
    storage.put("sae.safetensors", save_tensors({**old, **new}))
    record = sae.record.model_copy(update={"calibrated_l0": l0})
    storage.put("sae.json", record.to_json().encode())
    for key in ("eval.json", LATENTS):
        if storage.exists(key):
            storage.delete(key)


def _rows(sae: TrainedSae, store: Store, all_rows: bool) -> Iterator[ScaledRows]:
    """ScaledRows spread over the store's held-out units, or over all where there are
    none, as the SAE sees them.
    """
    check_fits(sae.record, store)
    ids = rows_of(
        sae, store, "held_out" if holds_out(sae, store, all_rows) else None, all_rows
    )
    wanted = ROWS if sae.of_all_sites else -(-ROWS // len(sae.sites))
    ids = ids[
        np.unique(np.linspace(0, len(ids) - 1, min(len(ids), wanted)).astype(np.int64))
    ]
    if sae.of_all_sites:
        for parts in blocks(store, sae.sites, ids, sae.n_latents):
            yield ScaledRows(sae.scaled(torch.stack(parts, dim=1).to(sae.device)))
        return
    for i, site in enumerate(sae.sites):
        for (x,) in blocks(store, (site,), ids, sae.n_latents):
            yield ScaledRows(
                sae.scaled(x.to(sae.device), i),
                torch.full((len(x),), i, device=sae.device),
            )
