"""What a run takes where its spec says `auto`: the peak learning rate, and from when on
a latent is dead.

The learning rate, of rows whose mean square is 1:

    lr = RATES[kind] * (1024 / latents)^(1/2) * (batch / 4096)^(1/3) * min(updates / 250, 250 / updates)^0.15

It was fitted, with Adam's beta2 at 0.95, to the held-out FVU of eight kinds at d 128,
over 256 to 1,024 latents, batches of 256 to 4,096 rows and 49 to 3,907 updates
(`tests/benchmarks/learning_rates.py`, its results beside it): 82 curves of three or
four rates. On them the rule is 0.8 % above the best in the mean, 0.4 % in the median,
at most 3 % on
78. That the size counts and not the expansion over d was seen on known features at d
768: of 2,048 latents topk and batch_topk were best at 0.005, which is the rate of this
rule. OpenAI's scaling study has the same root (arXiv:2406.04093).

beta2 is 0.95 and not Adam's usual 0.999, which remembers 1,000 updates, more than most
runs of an SAE take: with the first, large gradients in its mean, later steps are too
small. In each of the 48 cells of that sweep which were trained with both, over the same
rates, 0.95 is better: FVU lower by 3 to 18 %, in 41 of them with no more dead latents;
in 3,904 updates by 1 % (batch_topk) and 8 % (relu_l1). Of batch_topk, 0.9 and 0.8 give
the same.
"""

from __future__ import annotations

import math

from schemas.sae import BatchTopK, Matryoshka, SaeSpec, TopK, inner_of
from schemas.train import TrainSpec

RATES = {
    "topk": 7e-3,
    "batch_topk": 7e-3,
    "matryoshka": 6.5e-3,
    "relu_l1": 1.15e-2,
    "gated": 1.05e-2,
    "jumprelu": 7.2e-3,
    "mlp_encoder": 8e-3,
    "nsae": 1.4e-2,
}
_LATENTS, _BY_LATENTS = 1024, 1 / 2
_BATCH, _BY_BATCH = 4096, 1 / 3
_UPDATES, _BY_UPDATES = 250, 0.15
# beyond what was measured the rate does not rise any more
_LEAST_LATENTS, _MOST_BATCH = 128, 16_384

# With 250 intervals 4.0 % of 4,096 latents of a matryoshka never fired on held-out rows
# after 1 M rows, of batch_topk 1.9 %; with 100 0.7 and 0.3 %. Of 1,024 of batch_topk
# after 20 M rows 0.1 %; with a 60th of the run instead 4.9 %.
_INTERVALS = 100
_LEAST_BATCHES, _MOST_SHARE = 4, 10
_MOST_ROWS = 10_000_000
_USUAL_L0 = 32.0


def peak_rate(spec: TrainSpec, d: int, updates: int) -> float:
    """The peak learning rate of a run of so many updates on rows of width d."""
    plan = spec.optimiser
    if plan.lr != "auto":
        return plan.lr * plan.lr_factor
    by_latents = math.pow(_LATENTS / max(_LEAST_LATENTS, spec.sae.size(d)), _BY_LATENTS)
    by_batch = math.pow(min(_MOST_BATCH, spec.stream.batch) / _BATCH, _BY_BATCH)
    updates = max(1, updates)
    by_updates = math.pow(min(updates / _UPDATES, _UPDATES / updates), _BY_UPDATES)
    rate: float = (
        RATES[inner_of(spec.sae).kind]
        * by_latents
        * by_batch
        * by_updates
        * plan.lr_factor
    )
    return rate


def dead_after(spec: TrainSpec, n_latents: int, updates: int) -> int:
    """Rows after which a silent latent is dead: 100 times the mean time between a
    latent's firings, n_latents / L0 rows; at least 4 batches, at most a tenth of the
    run, and at most 10 M rows.
    """
    if spec.dead_rows != "auto":
        return spec.dead_rows
    batch = spec.stream.batch
    usual = round(_INTERVALS * n_latents / _wanted_l0(spec.sae))
    return min(
        _MOST_ROWS,
        max(_LEAST_BATCHES * batch, min(usual, updates * batch // _MOST_SHARE)),
    )


def _wanted_l0(sae: SaeSpec) -> float:
    """Active latents per row that a spec asks for; of a penalty whose weight is given,
    those that are usual.
    """
    inner = inner_of(sae)
    if isinstance(inner, TopK | BatchTopK | Matryoshka):
        return inner.k
    return inner.steered_l0 or _USUAL_L0
