"""Metrics from held-out rows of a store; no language model needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.format.storage import Storage
from actstore.store import Store
from schemas.records import EvalRecord, ModelMetrics
from trainer.errors import RunError
from trainer.evaluate.metrics import LayerSums, layer_sums
from trainer.trained import TrainedSae

BLOCK = 4096
Tick = Callable[[int, int], None]


def evaluate(
    sae: TrainedSae, store: Store, split: str = "held_out", max_rows: int | None = None, tick: Tick | None = None
) -> tuple[EvalRecord, Tensor]:
    """Metrics of every layer and pooled, and the firings of each latent, int64 [n_layers, m].

    Rows come in store order, the first `max_rows` of each site. Raises RunError where the store does not have the
    SAE's sites, or no rows of the split.
    """
    missing = [site for site in sae.sites if site not in store.sites]
    if missing:
        raise RunError(
            f"{store.url}: it has no site {', '.join(missing)} of this SAE; evaluate on the store it is from"
        )
    rows = store.rows(split)[:max_rows]
    if not len(rows):
        raise RunError(
            f"{store.url}: no {split} rows; a store of fewer than 20 units holds none out, use --split train"
        )
    sums = []
    for i, site in enumerate(sae.sites):
        sums.append(_site_sums(sae, store, site, rows))
        if tick is not None:
            tick(i + 1, len(sae.sites))
    return _record(sae, store, split, sums), torch.stack([one.firings for one in sums])


def write(run: str, record: EvalRecord, firings: Tensor) -> None:
    """`eval.json` and `latents.safetensors` (firings int64 [n_layers, m], rows int64 [n_layers]) into the run."""
    storage = Storage(run)
    rows = torch.tensor([layer.rows for layer in record.layers])
    storage.put("latents.safetensors", save_tensors({"firings": firings.contiguous(), "rows": rows}))
    storage.put("eval.json", record.to_json().encode())


def with_model(record: EvalRecord, model: tuple[ModelMetrics, ...]) -> EvalRecord:
    """The record with the effect on the language model added."""
    return record.model_copy(update={"model": model})


@torch.no_grad()
def _site_sums(sae: TrainedSae, store: Store, site: str, rows: np.ndarray) -> LayerSums:
    mean = torch.from_numpy(store.mean(site)).to(sae.device)
    norms, scale = sae.decoder.norm(dim=1), float(sae.scale[sae.sites.index(site)])
    total = LayerSums(torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.device))
    for x in _blocks(store, site, rows):
        on = x.to(sae.device)
        latents = sae.encode(on, site)
        total += layer_sums(on, sae.decode(latents, site), latents, mean, scale, norms)
    total.firings = total.firings.cpu()
    return total


def _blocks(store: Store, site: str, rows: np.ndarray) -> Iterator[Tensor]:
    """A unit's shard is read once: blocks of rows come from one unit's rows in memory."""
    units = rows // store.layout.capacity
    for unit in np.unique(units):
        x = torch.from_numpy(store.read(site, rows[units == unit]))
        yield from x.split(BLOCK)


def _record(sae: TrainedSae, store: Store, split: str, sums: list[LayerSums]) -> EvalRecord:
    pooled = sum(sums[1:], start=sums[0])
    layers = tuple(one.metrics(site, sae.d) for site, one in zip(sae.sites, sums, strict=True))
    alive = int((pooled.firings > 0).sum())
    return EvalRecord(
        run=sae.url,
        store=store.url,
        content_id=store.manifest.content_id,
        split=split,
        rows=pooled.rows,
        pooled=pooled.metrics("pooled", sae.d),
        fvu_layer_mean=sum(layer.fvu for layer in layers) / len(layers),
        layers=layers,
        dead=sae.n_latents - alive,
        dead_rows=pooled.rows,
        alive_share=alive / sae.n_latents,
    )
