"""Metrics from held-out rows of a store; no language model needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.errors import NoRowsError, SpecError
from actstore.format.storage import Storage
from actstore.store.store import Store
from actstore.stream.row_filter import kept_ids
from schemas.records import EvalRecord, ModelMetrics
from schemas.sae import Crosscoder
from trainer.errors import RunError
from trainer.evaluate.metrics import LayerSums, layer_sums, pooled
from trainer.runs.run_store import absolute, check_fits
from trainer.runs.run_tensors import LATENTS
from trainer.runs.trained_sae import TrainedSae

BLOCK = 4096
BLOCK_LATENTS = 1 << 28  # of all rows of a block, which are 1 GiB
Tick = Callable[[int, int], None]


def evaluate(
    sae: TrainedSae,
    store: Store,
    split: str = "held_out",
    max_rows: int | None = None,
    tick: Tick | None = None,
    all_rows: bool = False,
) -> tuple[EvalRecord, Tensor]:
    """Metrics of every layer and pooled, and the firings of each latent, int64
    [n_layers, m].

    Rows come in store order, the first `max_rows` of each site, of those that the
    filter of training keeps unless `all_rows`. A transcoder's layers are its pairs,
    named by their inputs, and the figures those of the outputs; a crosscoder's latents
    fire at all its sites alike. Raises RunError where the store does not have the SAE's
    sites, or no rows of the split.
    """
    check_fits(sae.record, store)
    rows = rows_of(sae, store, split, all_rows)[:max_rows]
    if not len(rows):
        raise RunError(
            f"{store.url}: no {split} rows; a store of fewer than 20 units holds none"
            " out, use --split train"
        )
    if isinstance(sae.spec, Crosscoder):
        sums = _aligned_sums(sae, store, rows, tick)
    else:
        sums = []
        for i in range(len(sae.sites)):
            sums.append(_site_sums(sae, store, i, rows))
            if tick is not None:
                tick(i + 1, len(sae.sites))
    rule = None if all_rows else sae.record.filter
    if rule is not None:
        for one in sums:
            one.about_own_mean()
    return _record(sae, store, split, sums).model_copy(
        update={"filter": rule}
    ), torch.stack([one.firings for one in sums])


def rows_of(
    sae: TrainedSae, store: Store, split: str | None, all_rows: bool = False
) -> np.ndarray:
    """Ids of the rows of a split that the filter of training keeps, all of them where
    it had none or with `all_rows`.

    Raises RunError where the filter leaves none, or asks for what an imported store
    does not know.
    """
    if all_rows:
        return store.rows(split)
    try:
        return _kept(sae, store, split)
    except SpecError as error:
        raise RunError(
            f"{error} (the SAE was trained with it; --all-rows leaves it out, --split"
            " train takes rows of training)"
        ) from None


def holds_out(sae: TrainedSae, store: Store, all_rows: bool = False) -> bool:
    """Whether rows of the store are held out that the filter of training keeps, or any
    with `all_rows`.
    """
    if all_rows or not store.units("held_out"):
        return len(store.rows("held_out")) > 0
    with suppress(NoRowsError):
        return len(_kept(sae, store, "held_out")) > 0
    return False


def write(run: str, record: EvalRecord, firings: Tensor) -> None:
    """`eval.json` and `latents.safetensors` (firings int64 [n_layers, m], rows int64
    [n_layers]) into the run.
    """
    storage = Storage(run)
    rows = torch.tensor([layer.rows for layer in record.layers])
    storage.put(LATENTS, save_tensors({"firings": firings.contiguous(), "rows": rows}))
    storage.put("eval.json", record.to_json().encode())


def with_model(record: EvalRecord, model: tuple[ModelMetrics, ...]) -> EvalRecord:
    """The record with the effect on the language model added, of each site and pooled."""
    return record.model_copy(
        update={"model": model, "model_pooled": pooled(model) if model else None}
    )


def _kept(sae: TrainedSae, store: Store, split: str | None) -> np.ndarray:
    rule = sae.record.filter
    return (
        store.rows(split) if rule is None else kept_ids(store, rule, split, sae.sites)
    )


@torch.no_grad()
def _site_sums(sae: TrainedSae, store: Store, i: int, rows: np.ndarray) -> LayerSums:
    """Of one site; of a transcoder, of one pair of sites."""
    sites = (
        (sae.sites[i], sae.record.targets[i]) if sae.record.targets else (sae.sites[i],)
    )
    mean = torch.from_numpy(store.mean(sites[-1])).to(sae.device)
    norms, scale = sae.decoder.norm(dim=1), float(sae.scale_out[i])
    total = LayerSums(torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.device))
    for block in blocks(store, sites, rows, sae.n_latents):
        on = [x.to(sae.device) for x in block]
        latents = sae.encode(on[0], i)
        # with the skip connection
        again = sae.decode(latents, i) if len(on) == 1 else sae.reconstruct(on[0], i)
        total += layer_sums(on[-1], again, latents, mean, scale, norms)
    total.firings = total.firings.cpu()
    return total


@torch.no_grad()
def _aligned_sums(
    sae: TrainedSae, store: Store, rows: np.ndarray, tick: Tick | None
) -> list[LayerSums]:
    """Of each site of a crosscoder."""
    means = [torch.from_numpy(store.mean(site)).to(sae.device) for site in sae.sites]
    norms, scales = sae.decoder.norm(dim=2), sae.scale.tolist()
    sums = [
        LayerSums(torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.device))
        for _ in sae.sites
    ]
    done = 0
    for block in blocks(store, sae.sites, rows, sae.n_latents):
        x = torch.stack([part.to(sae.device) for part in block], dim=1)
        latents = sae.encode(x)
        again = sae.decode(latents)
        for i, mean in enumerate(means):
            sums[i] += layer_sums(
                x[:, i], again[:, i], latents, mean, scales[i], norms[:, i]
            )
        done += len(x)
        if tick is not None:
            tick(done, len(rows))
    for one in sums:
        one.firings = one.firings.cpu()
    return sums


def blocks(
    store: Store, sites: tuple[str, ...], rows: np.ndarray, n_latents: int
) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of some sites. A unit's shards are read once: blocks come from one
    unit's rows in memory.
    """
    size = max(1, min(BLOCK, BLOCK_LATENTS // n_latents))
    units = rows // store.layout.capacity
    for unit in np.unique(units):
        parts = [
            torch.from_numpy(store.read(site, rows[units == unit])).split(size)
            for site in sites
        ]
        yield from zip(*parts, strict=True)


def _record(
    sae: TrainedSae, store: Store, split: str, sums: list[LayerSums]
) -> EvalRecord:
    pooled = sum(sums[1:], start=sums[0])
    d = sae.record.d_out or sae.d
    layers = tuple(
        one.metrics(site, d) for site, one in zip(sae.sites, sums, strict=True)
    )
    alive = int((pooled.firings > 0).sum())
    fvus = [layer.fvu for layer in layers if not math.isnan(layer.fvu)]
    return EvalRecord(
        run=sae.url,
        name=sae.record.name,
        store=absolute(store.url),
        content_id=store.manifest.content_id,
        split=split,
        rows=pooled.rows,
        pooled=pooled.metrics("pooled", d),
        fvu_layer_mean=sum(fvus) / len(fvus) if fvus else math.nan,
        layers=layers,
        dead=sae.n_latents - alive,
        dead_rows=pooled.rows,
        alive_share=alive / sae.n_latents,
    )
