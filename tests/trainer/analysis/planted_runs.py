"""Runs whose decoders are put there by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from actstore.store.store import Store
from schemas.train import TrainSpec
from trainer.training.train_group import train_group


def train_small(
    store: Store, runs: dict[Path, dict[str, Any]], **more: Any
) -> list[str]:
    """Train runs for a few steps from one pass; `more` is of all."""
    specs = {}
    for path, options in runs.items():
        stream = {"batch": 64, **options.get("stream", {})}
        spec = {"store": store.url, "rows": 256, **more, **options, "stream": stream}
        specs[str(path)] = TrainSpec.model_validate(spec)
    train_group(store, specs)
    return list(specs)


def plant(run: str, decoder: torch.Tensor) -> None:
    """Put a decoder [m, d] in the place of a run's own."""
    path = Path(run) / "sae.safetensors"
    tensors = load_file(path)
    assert tensors["W_dec"].shape == decoder.shape
    tensors["W_dec"] = decoder.float().contiguous()
    save_file(tensors, path)
