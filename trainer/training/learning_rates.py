"""Settles what a run takes where its spec says `auto`.

These are the peak learning rate, and after how many silent rows a latent is dead. The
learning rate, for rows whose mean square is 1, is

    lr = rate of the kind * (1024 / latents)^(1/2) * (batch / 4096)^(1/3)
         * min(updates / 250, 250 / updates)^0.15

It was fitted, with Adam's beta2 at 0.95, to the held-out FVU of eight kinds at d 128,
over 256 to 1,024 latents, batches of 256 to 4,096 rows and 49 to 3,907 updates
(`tests/benchmarks/learning_rates.py`, its results beside it): 82 curves of three or
four rates. On them the rule is 0.8 % above the best in the mean, 0.4 % in the median,
at most 3 % on 78. That the size counts and not the expansion over d was seen on known
features at d 768: with 2,048 latents topk and batch_topk were best at 0.005, which is
the rate of this rule. OpenAI's scaling study has the same root (arXiv:2406.04093).

beta2 is 0.95 and not Adam's usual 0.999, which remembers 1,000 updates, more than most
runs of an SAE take: with the first, large gradients in its mean, later steps are too
small. In each of the 48 cells of that sweep which were trained with both, over the same
rates, 0.95 is better: FVU is lower by 2 to 17 %, in 41 of them with no more dead
latents; in 3,904 updates by 1 % (batch_topk) and 8 % (relu_l1). For batch_topk, 0.9 and
0.8 give the same.
"""

from __future__ import annotations

import math

from schemas.sae import SaeSpec, inner_of
from schemas.train import TrainSpec
from trainer.saes.build import latents_kind

# The sizes at which each kind's rate was measured.
_LATENTS = 1024
_BATCH = 4096
_UPDATES = 250
# The exponents of the rule.
_BY_LATENTS = 1 / 2
_BY_BATCH = 1 / 3
_BY_UPDATES = 0.15
# The rate rises no further beyond these, which are the last that were measured.
_LEAST_LATENTS = 128
_MOST_BATCH = 16_384

# Measured as the share of latents that never fired on held-out rows. 4,096 latents, 1 M
# rows: 4.0 % (matryoshka) and 1.9 % (batch_topk) with 250 intervals, 0.7 and 0.3 % with
# 100. 1,024 latents of batch_topk, 20 M rows: 0.1 % with 100 intervals; 4.9 % with a
# 60th of the run instead.
_INTERVALS = 100
_LEAST_BATCHES = 4
_LEAST_PARTS = 10  # a latent is silent for at most a tenth of the run
_MOST_ROWS = 10_000_000
_USUAL_L0 = 32.0


def peak_rate(spec: TrainSpec, d: int, updates: int) -> float:
    """Return the peak learning rate of a run.

    For topk (7e-3) with 4,096 latents, batches of 4,096 and 1,000 updates it is
    7e-3 * (1/4)^0.5 * 1 * (1/4)^0.15 = 0.0028.

    Args:
        spec: The run.
        d: Width of its rows.
        updates: How often its weights are updated.
    """
    optimiser = spec.optimiser
    if optimiser.lr != "auto":
        return optimiser.lr * optimiser.lr_factor
    latents = max(_LEAST_LATENTS, spec.sae.size(d))
    batch = min(_MOST_BATCH, spec.stream.batch)
    updates = max(1, updates)
    # With 16,384 latents, batches of 4,096 and 4,000 updates, the kind's rate times
    # (1/16)^(1/2) * 1 * (1/16)^0.15 = 0.25 * 1 * 0.66 = 0.165.
    by_latents = math.pow(_LATENTS / latents, _BY_LATENTS)
    by_batch = math.pow(batch / _BATCH, _BY_BATCH)
    # highest at 250 updates, and lower for shorter and for longer runs alike
    updates_ratio = min(updates / _UPDATES, _UPDATES / updates)
    by_updates = math.pow(updates_ratio, _BY_UPDATES)
    of_kind = latents_kind(spec.sae).learning_rate
    assert of_kind is not None, "every kind with latents of its own has a rate"
    rate: float = of_kind * by_latents * by_batch * by_updates * optimiser.lr_factor
    return rate


def dead_after(spec: TrainSpec, n_latents: int, updates: int) -> int:
    """Return after how many silent rows a latent is dead.

    A latent fires once in n_latents / L0 rows on average, and is dead after 100 times
    as many: with 1,024 latents and an L0 of 32 that is after 100 * 32 = 3,200 rows. At
    least 4 batches, at most a tenth of the run, and at most 10 M rows.

    Args:
        spec: The run.
        n_latents: Size of its dictionary.
        updates: How often its weights are updated.
    """
    if spec.dead_rows != "auto":
        return spec.dead_rows
    batch = spec.stream.batch
    usual = round(_INTERVALS * n_latents / _wanted_l0(spec.sae))
    share_of_run = updates * batch // _LEAST_PARTS
    at_least = _LEAST_BATCHES * batch
    # the number of batches counts for more than the share of a short run
    rows = max(at_least, min(usual, share_of_run))
    return min(_MOST_ROWS, rows)


def _wanted_l0(sae: SaeSpec) -> float:
    """Return the active latents per row that a spec asks for.

    Where the weight of a penalty is given, the usual number.
    """
    inner = inner_of(sae)
    return inner.latents_per_row or inner.steered_l0 or _USUAL_L0
