"""Measures an SAE on rows of a store; no language model is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.errors import NoRowsError, SpecError
from actstore.format.absolute_url import absolute
from actstore.format.storage import Storage
from actstore.store.store import Store
from actstore.stream.row_filter import kept_ids
from schemas.records import EvalRecord, ModelMetrics
from trainer.errors import RunError
from trainer.evaluation.metric_definitions import LayerSums, layer_sums, pooled
from trainer.runs.run_store import check_fits
from trainer.runs.run_tensors import LATENTS
from trainer.runs.trained_sae import TrainedSae

BLOCK = 4096  # rows that are encoded at once
# Latents of all rows of a block, at most: 1 GiB of float32.
BLOCK_LATENTS = 1 << 28

# Is told how much is done, and how much there is to do.
Tick = Callable[[int, int], None]


def evaluate_rows(
    sae: TrainedSae,
    store: Store,
    split: str = "held_out",
    max_rows: int | None = None,
    tick: Tick | None = None,
    all_rows: bool = False,
) -> tuple[EvalRecord, Tensor]:
    """Measure an SAE on rows of a store.

    Rows come in the store's order. The layers of a transcoder are its pairs, named by
    their inputs, and the figures are those of the outputs. The latents of a crosscoder
    fire at all its sites alike.

    Args:
        sae: The SAE.
        store: A store that has its sites.
        split: "held_out" or "train".
        max_rows: Take only the first so many rows of each site; None for all of them.
        tick: Is told how many sites (for a crosscoder: rows) are done.
        all_rows: Also take rows that the filter of training left out.

    Returns:
        The metrics of every layer and pooled, and how often each latent fired, int64
        [n_layers, m].

    Raises:
        RunError: The store does not have the SAE's sites, or no rows of the split.
    """
    check_fits(sae.record, store)
    ids = row_ids(sae, store, split, all_rows)[:max_rows]
    if not len(ids):
        raise RunError(
            f"{store.url}: no {split} rows; a store of fewer than 20 units holds none"
            " out, use --split train"
        )
    if sae.of_all_sites:
        sums = _aligned_sums(sae, store, ids, tick)
    else:
        sums = []
        for index in range(len(sae.sites)):
            sums.append(_site_sums(sae, store, index, ids))
            if tick is not None:
                tick(index + 1, len(sae.sites))
    used_filter = None if all_rows else sae.record.filter
    if used_filter is not None:
        for site_sums in sums:
            site_sums.about_own_mean()
    record = _record(sae, store, split, sums)
    record = record.model_copy(update={"filter": used_filter})
    firings = torch.stack([site_sums.firings for site_sums in sums])
    return record, firings


def row_ids(
    sae: TrainedSae, store: Store, split: str | None, all_rows: bool = False
) -> NDArray[np.int64]:
    """Return the ids of the rows that an SAE is measured on, int64 [n].

    These are the rows that the filter of training keeps; all of them where it had none,
    or with `all_rows`.

    Args:
        sae: The SAE.
        store: The store.
        split: "held_out", "train" or None for both.
        all_rows: Also take rows that the filter left out.

    Raises:
        RunError: The filter leaves no rows, or asks for what an imported store does not
            know.
    """
    if all_rows:
        return store.rows(split)
    try:
        return _kept_ids(sae, store, split)
    except SpecError as error:
        raise RunError(
            f"{error} (the SAE was trained with it; --all-rows leaves it out, --split"
            " train takes rows of training)"
        ) from None


def holds_out(sae: TrainedSae, store: Store, all_rows: bool = False) -> bool:
    """Return whether a store holds out rows that `row_ids` would give for an SAE."""
    if all_rows or not store.units("held_out"):
        return len(store.rows("held_out")) > 0
    with suppress(NoRowsError):
        return len(_kept_ids(sae, store, "held_out")) > 0
    return False


def write_evaluation(run: str, record: EvalRecord, firings: Tensor) -> None:
    """Write `eval.json` and `latents.safetensors` into a run's folder.

    Args:
        run: The folder.
        record: The metrics.
        firings: How often each latent fired, int64 [n_layers, m]. Beside it goes the
            number of rows, int64 [n_layers].
    """
    storage = Storage(run)
    rows = torch.tensor([layer.rows for layer in record.layers])
    tensors = {"firings": firings.contiguous(), "rows": rows}
    storage.put(LATENTS, save_tensors(tensors))
    # Last, since it is what tells that a run has been evaluated.
    storage.put("eval.json", record.to_json().encode())


def with_model(record: EvalRecord, model: tuple[ModelMetrics, ...]) -> EvalRecord:
    """Return an evaluation with the effect on the language model added."""
    update = {"model": model, "model_pooled": pooled(model) if model else None}
    return record.model_copy(update=update)


def _kept_ids(sae: TrainedSae, store: Store, split: str | None) -> NDArray[np.int64]:
    rule = sae.record.filter
    if rule is None:
        return store.rows(split)
    return kept_ids(store, rule, split, sae.sites)


@torch.no_grad()
def _site_sums(
    sae: TrainedSae, store: Store, index: int, ids: NDArray[np.int64]
) -> LayerSums:
    """Return the sums of one site, or of one pair of a transcoder's sites."""
    sites: tuple[str, ...] = (sae.sites[index],)
    if sae.record.targets:
        sites = (sae.sites[index], sae.record.targets[index])
    mean = torch.from_numpy(store.mean(sites[-1])).to(sae.device)
    decoder_norms = sae.decoder.norm(dim=1)
    scale = float(sae.scale_out[index])
    total = _no_sums(sae)
    for block in blocks(store, sites, ids, sae.n_latents):
        on_device = [rows.to(sae.device) for rows in block]
        inputs = on_device[0]
        outputs = on_device[-1]
        latents = sae.encode(inputs, index)
        if len(on_device) == 1:
            again = sae.decode(latents, index)
        else:  # a transcoder, whose skip connection only `reconstruct` adds
            again = sae.reconstruct(inputs, index)
        total += layer_sums(outputs, again, latents, mean, scale, decoder_norms)
    total.firings = total.firings.cpu()
    return total


@torch.no_grad()
def _aligned_sums(
    sae: TrainedSae, store: Store, ids: NDArray[np.int64], tick: Tick | None
) -> list[LayerSums]:
    """Return the sums of each site of a crosscoder."""
    means = [torch.from_numpy(store.mean(site)).to(sae.device) for site in sae.sites]
    decoder_norms = sae.decoder.norm(dim=2)
    scales = sae.scale.tolist()
    sums = [_no_sums(sae) for _ in sae.sites]
    n_done = 0
    for block in blocks(store, sae.sites, ids, sae.n_latents):
        rows = torch.stack([part.to(sae.device) for part in block], dim=1)
        latents = sae.encode(rows)
        again = sae.decode(latents)
        for i, mean in enumerate(means):
            sums[i] += layer_sums(
                rows[:, i], again[:, i], latents, mean, scales[i], decoder_norms[:, i]
            )
        n_done += len(rows)
        if tick is not None:
            tick(n_done, len(ids))
    for site_sums in sums:
        site_sums.firings = site_sums.firings.cpu()
    return sums


def _no_sums(sae: TrainedSae) -> LayerSums:
    return LayerSums(torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.device))


def blocks(
    store: Store, sites: tuple[str, ...], ids: NDArray[np.int64], n_latents: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yield rows of some sites, the same tokens of each, block by block.

    Each of a unit's shards is read once, and its rows are then cut into blocks.

    Args:
        store: The store.
        sites: The sites.
        ids: Ids of the rows, int64 [n], ascending.
        n_latents: Latents of each row; with many of them blocks are smaller.

    Yields:
        Rows of each site, float32 [block, d].
    """
    size = max(1, min(BLOCK, BLOCK_LATENTS // n_latents))
    units = ids // store.layout.capacity
    for unit in np.unique(units):
        ids_of_unit = ids[units == unit]
        by_site = [
            torch.from_numpy(store.read(site, ids_of_unit)).split(size)
            for site in sites
        ]
        yield from zip(*by_site, strict=True)


def _record(
    sae: TrainedSae, store: Store, split: str, sums: list[LayerSums]
) -> EvalRecord:
    total = sum(sums[1:], start=sums[0])
    d = sae.record.d_out or sae.d
    layers = tuple(
        site_sums.metrics(site, d)
        for site, site_sums in zip(sae.sites, sums, strict=True)
    )
    n_alive = int((total.firings > 0).sum())
    fvus = [layer.fvu for layer in layers if not math.isnan(layer.fvu)]
    return EvalRecord(
        run=sae.url,
        name=sae.record.name,
        store=absolute(store.url),
        content_id=store.manifest.content_id,
        split=split,
        rows=total.rows,
        pooled=total.metrics("pooled", d),
        fvu_layer_mean=sum(fvus) / len(fvus) if fvus else math.nan,
        layers=layers,
        dead=sae.n_latents - n_alive,
        dead_rows=total.rows,
        alive_share=n_alive / sae.n_latents,
    )
