"""Sets the thresholds of a trained or imported SAE so that rows have a wanted L0."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import EvalRecord
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import blocks, holds_out, row_ids
from trainer.evaluation.thresholds_for_l0 import ROWS, SPARES, Levels, wanted_l0
from trainer.runs.run_store import check_fits
from trainer.runs.run_tensors import LATENTS, most_bytes, read_tensors
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.build import latents_of
from trainer.saes.scaled_rows import ScaledRows

# An L0 that is further off than this share of the wanted one is reported.
_MOST_OFF = 0.1


@torch.no_grad()
def move_thresholds(
    sae: TrainedSae, store: Store, l0: float | None = None, all_rows: bool = False
) -> float:
    """Move the thresholds of an SAE, in place, so that held-out rows have a mean L0.

    Args:
        sae: The SAE.
        store: A store that has its sites.
        l0: The wanted L0; None for the one that its spec asks for.
        all_rows: Also take rows that the filter of training left out.

    Returns:
        The wanted L0.

    Raises:
        RunError: The SAE has no threshold, its spec asks for no L0, or the L0 cannot be
            reached.
    """
    if not latents_of(sae.sae).has_threshold:
        raise RunError(f"{sae.url}: topk has no threshold; each row has its k latents")
    l0 = asked_l0(sae) if l0 is None else l0
    if l0 is None:
        raise RunError(
            f"{sae.url}: its spec asks for no L0 (it is imported, or has a fixed"
            " penalty); say which with --l0"
        )
    levels = _levels(sae, store, l0, all_rows)
    if levels is None:
        raise RunError(
            f"{sae.url}: an L0 of {l0:g} cannot be reached with its {sae.n_latents}"
            " latents; lower --l0"
        )
    latents_of(sae.sae).raise_thresholds(levels.found())
    return l0


def asked_l0(sae: TrainedSae) -> float | None:
    """Return the mean L0 that an SAE is meant to have; None for an imported one.

    That is the one of its last calibration, else the one of its spec.
    """
    if sae.record.calibrated_l0 is not None:
        return sae.record.calibrated_l0
    was_trained = sae.record.steps > 0
    return wanted_l0(sae.spec) if was_trained else None


def off_target(record: EvalRecord, wanted: float | None) -> str | None:
    """Return a note where an L0 is more than 10 % off the wanted one."""
    if wanted is None:
        return None
    l0 = record.pooled.l0
    off = abs(l0 / wanted - 1)
    if off <= _MOST_OFF:
        return None
    return (
        f"L0 is {l0:.1f}, {off:.0%} off the {wanted:g} that it is set for, so its"
        " figures do not compare with those of that L0; `trainer calibrate"
        f" {record.run}` sets its thresholds anew"
    )


def write_thresholds(run: str, sae: TrainedSae, l0: float) -> None:
    """Write an SAE's new thresholds into its run.

    What was evaluated with the old ones is removed.
    """
    storage = Storage(run)
    limit = most_bytes(sae.record, f"{run}/sae.json")
    # The file also holds scales and means, which stay as they are.
    tensors = read_tensors(storage, "sae.safetensors", limit=limit)
    for name, value in sae.sae.state_dict().items():
        tensors[name] = value.detach().cpu().contiguous()
    storage.put("sae.safetensors", save_tensors(tensors))
    record = sae.record.model_copy(update={"calibrated_l0": l0})
    storage.put("sae.json", record.to_json().encode())
    for key in ("eval.json", LATENTS):
        if storage.exists(key):
            storage.delete(key)


def _levels(sae: TrainedSae, store: Store, l0: float, all_rows: bool) -> Levels | None:
    """Collect the margins that are wanted; None where there are too few."""
    if l0 >= sae.n_latents:
        return None
    # A second pass keeps more of them, for where the first rows were unlike the rest.
    for spare in SPARES:
        levels = Levels(sae.sae, l0, spare)
        for rows in _rows(sae, store, all_rows):
            levels.add(rows, levels.counts(rows))
        if levels.enough():
            return levels
    return None


def _rows(sae: TrainedSae, store: Store, all_rows: bool) -> Iterator[ScaledRows]:
    """Yield rows as the SAE sees them, block by block.

    They are spread evenly over the store's held-out rows, or over all rows where it
    holds none out.
    """
    check_fits(sae.record, store)
    split = "held_out" if holds_out(sae, store, all_rows) else None
    ids = row_ids(sae, store, split, all_rows)
    wanted = ROWS if sae.of_all_sites else -(-ROWS // len(sae.sites))
    n_taken = min(len(ids), wanted)
    positions = np.linspace(0, len(ids) - 1, n_taken).astype(np.int64)
    ids = ids[np.unique(positions)]
    if sae.of_all_sites:
        for block in blocks(store, sae.sites, ids, sae.n_latents):
            x = torch.stack(block, dim=1).to(sae.device)
            yield ScaledRows(sae.scaled(x))
        return
    for index, site in enumerate(sae.sites):
        for (x,) in blocks(store, (site,), ids, sae.n_latents):
            layer = torch.full((len(x),), index, device=sae.device)
            yield ScaledRows(sae.scaled(x.to(sae.device), index), layer)
