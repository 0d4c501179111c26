"""What a run takes where its spec says `auto`: the peak learning rate, and from when on a latent is dead.

The learning rate, of rows whose mean square is 1:

    lr = RATES[kind] * (1024 / latents)^0.5 * min(1, (400 / updates)^0.3)

It was fitted to the rates with the least held-out FVU of six kinds at d 128, 256 to 1,024 latents and 48 to 781
updates (`tests/benchmarks/learning_rates.py`, its results beside it): the best rate falls as the root of the
dictionary's size, does not change from 50 to 400 updates, and falls slowly from there. Where the curves are flat the
higher rate was taken, since other stores of that width want more: the residual stream of the same model and synthetic
layers with outlying dimensions were best at 1.4 to 2 times the rule. That the size counts and not the expansion over
d was seen on known features at d 768 (topk, 2,048 latents): 0.0092, the rate of that expansion, gave FVU 0.54, 0.0055
0.49, 0.0032 0.47; a 64-wide store wanted more than the rate of its expansion. OpenAI's scaling study has the same
root (arXiv:2406.04093).
"""

from __future__ import annotations

import math

from schemas.sae import BatchTopK, Matryoshka, SaeSpec, TopK, inner_of
from schemas.train import TrainSpec

RATES = {
    "topk": 5.3e-3,
    "batch_topk": 5e-3,
    "matryoshka": 5.5e-3,
    "relu_l1": 1e-2,
    "gated": 7.5e-3,
    "jumprelu": 4.5e-3,
    "mlp_encoder": 5.5e-3,
    "nsae": 5.5e-3,
}
_LATENTS, _BY_LATENTS = 1024, 0.5
_UPDATES, _BY_UPDATES = 400, 0.3

_INTERVALS = 250  # mean times between two firings of a latent
_LEAST_BATCHES = 4
_RUN_SHARE = 10
_MOST_ROWS = 10_000_000
_USUAL_L0 = 32.0


def peak_rate(spec: TrainSpec, d: int, updates: int) -> float:
    """The peak learning rate of a run of so many updates on rows of width d."""
    plan = spec.optimiser
    if plan.lr != "auto":
        return plan.lr * plan.lr_factor
    by_latents = math.pow(_LATENTS / spec.sae.size(d), _BY_LATENTS)
    by_updates = min(1.0, math.pow(_UPDATES / max(1, updates), _BY_UPDATES))
    rate: float = RATES[inner_of(spec.sae).kind] * by_latents * by_updates * plan.lr_factor
    return rate


def dead_after(spec: TrainSpec, n_latents: int, updates: int) -> int:
    """Rows after which a silent latent is dead: 250 times the mean time between firings, n_latents / L0 rows; at least
    4 batches, at most a tenth of the run, and at most 10 M rows."""
    if spec.dead_rows != "auto":
        return spec.dead_rows
    batch = spec.stream.batch
    usual = round(_INTERVALS * n_latents / _wanted_l0(spec.sae))
    return min(_MOST_ROWS, max(_LEAST_BATCHES * batch, min(usual, updates * batch // _RUN_SHARE)))


def _wanted_l0(sae: SaeSpec) -> float:
    """Active latents per row that a spec asks for; of a penalty whose weight is given, those that are usual."""
    inner = inner_of(sae)
    if isinstance(inner, TopK | BatchTopK | Matryoshka):
        return inner.k
    return inner.steered_l0 or _USUAL_L0
