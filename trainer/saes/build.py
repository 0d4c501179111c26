"""From a spec to a module, with the checks that need the width of the data."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from schemas.sae import SaeSpec, TopK
from trainer.errors import SaeError
from trainer.saes.ops import Step, unit_rows
from trainer.saes.relu_l1 import ReluL1Sae
from trainer.saes.topk import TopKSae

Sae = ReluL1Sae | TopKSae


class Trainable(Protocol):
    """What the learner needs of an architecture."""

    def training_step(self, x: Tensor, sparsity: float, dead: Tensor) -> Step: ...

    def before_update(self) -> None: ...

    def after_update(self) -> None: ...


def build(spec: SaeSpec, d: int, seed: int = 0) -> Sae:
    """A fresh SAE for activations of width d. Raises SaeError where the spec cannot work at that width."""
    n_latents = spec.size(d)
    if n_latents < 1:
        raise SaeError(f"expansion {spec.expansion} of d {d} gives {n_latents} latents; wanted at least 1")
    if isinstance(spec, TopK) and spec.k > n_latents:
        raise SaeError(f"k is {spec.k}, but the dictionary has {n_latents} latents (d {d}); lower k or raise expansion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TopKSae(spec, d) if isinstance(spec, TopK) else ReluL1Sae(spec, d)


@torch.no_grad()
def initialise_from(sae: Sae, rows: Tensor) -> None:
    """b_dec = mean of rows [n, d]; decoder = centred rows at norm 1 (methods, section 4); encoder = decoder^T.

    Where there are fewer rows than latents, the others keep their random directions.
    """
    sae.b_dec.copy_(rows.mean(dim=0))
    centred = rows - sae.b_dec
    centred = centred[centred.norm(dim=1) > 0][: sae.n_latents]
    sae.W_dec[: len(centred)] = unit_rows(centred)
    if sae.W_enc is not None:
        sae.W_enc.copy_(sae.W_dec.T)
