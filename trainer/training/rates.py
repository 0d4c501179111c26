"""What a run takes where its spec says `auto`: the peak learning rate, and from when on a latent is dead."""

from __future__ import annotations

import os

from schemas.sae import BatchTopK, Matryoshka, SaeSpec, TopK, inner_of
from schemas.train import TrainSpec

_INTERVALS = 250  # mean times between two firings of a latent
_LEAST_BATCHES = 4
_RUN_SHARE = 10
_MOST_ROWS = 10_000_000


def peak_rate(spec: TrainSpec, d: int, n_latents: int, steps: int) -> float:
    return float(os.environ.get("LR", "4e-3")) if spec.optimiser.lr == "auto" else spec.optimiser.lr


def dead_after(spec: TrainSpec, n_latents: int, steps: int) -> int:
    """Rows after which a silent latent is dead: 250 times the mean time between firings, n_latents / L0 rows, within
    4 batches and a tenth of the run, and at most 10 M rows."""
    if spec.dead_rows != "auto":
        return spec.dead_rows
    batch = spec.stream.batch
    usual = round(_INTERVALS * n_latents / wanted_l0(spec.sae))
    return min(_MOST_ROWS, max(_LEAST_BATCHES * batch, min(usual, steps * batch // _RUN_SHARE)))


def wanted_l0(sae: SaeSpec) -> float:
    """Active latents per row that a spec asks for; of a penalty whose weight is given, those it usually gives."""
    inner = inner_of(sae)
    if isinstance(inner, TopK | BatchTopK | Matryoshka):
        return inner.k
    return inner.steered_l0 or 32.0
