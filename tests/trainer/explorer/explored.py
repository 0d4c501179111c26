"""Runs of small synthetic stores, and what an explorer must find in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.runs.trained_sae import TrainedSae, load
from trainer.training.train_group import train_group


def small_store(folder: Path, **options: Any) -> Store:
    options = {"n_units": 40, "unit_sequences": 8, **options}
    return make_store(folder, **options)


def trained(store: Store, folder: Path, sae: dict[str, Any], **more: Any) -> TrainedSae:
    stream = {"batch": 256, **more.pop("stream", {})}
    spec = {"store": store.url, "sae": sae, "rows": 2560, "stream": stream, **more}
    train_group(store, {str(folder): TrainSpec.model_validate(spec)})
    return load(str(folder))


def dense(sae: TrainedSae, store: Store, ids: np.ndarray) -> np.ndarray:
    """All latents of all rows, [n_layers, n, m]: what no explorer may hold."""
    if sae.of_all_sites:
        rows = np.stack([store.read(site, ids) for site in sae.sites], axis=1)
        with torch.no_grad():
            return sae.encode(torch.from_numpy(rows)).numpy()[None]
    with torch.no_grad():
        return np.stack(
            [
                sae.encode(torch.from_numpy(store.read(site, ids)), site).numpy()
                for site in sae.sites
            ]
        )
