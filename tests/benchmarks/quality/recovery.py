"""Measures how much of known features an SAE has found. It is pure arithmetic.

With cos the cosines of feature directions and decoder rows, over the latents that fire
at all:

- mmcs: mean over features of their largest cosine; weighted: by the share of rows on
which a feature fires
- f1 of a (feature, latent) pair: 2 * both / (feature + latent), counts of rows; a
  feature's F1 is that of its best latent, and `f1` the mean over the n_latents most
  frequent features, as many as the SAE could hold
- f1_latents: mean over latents of their F1 with the feature of largest cosine, as
SynthSAEBench has it
- uniqueness: distinct ones of these features, over the latents
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 1024  # features at a time


class Recovery(NamedTuple):
    """See the module."""

    mmcs: float
    mmcs_weighted: float
    f1: float
    f1_latents: float
    uniqueness: float


class Counts:
    """Rows on which features and latents fire, together and alone; filled block by
    block.
    """

    def __init__(self, n_features: int, n_latents: int) -> None:
        # float32 counts exactly up to 2^24 rows
        self.both = torch.zeros(n_features, n_latents)
        self.feature = torch.zeros(n_features)
        self.latent = torch.zeros(n_latents)

    def add(self, row: Tensor, feature: Tensor, latents: Tensor) -> None:
        """Firings (row, feature), int64 [n] each, and the latents [B, m] of the same
        rows 0 to B - 1.
        """
        fires = (latents > 0).float()
        present, place = torch.unique(feature, return_inverse=True)
        pairs = torch.sparse_coo_tensor(
            torch.stack([place, row]),
            torch.ones(len(row)),
            (len(present), len(latents)),
            check_invariants=True,
        )
        self.both[present] += torch.sparse.mm(pairs, fires)
        self.feature += torch.bincount(feature, minlength=len(self.feature))
        self.latent += fires.sum(dim=0)


def recovery(directions: Tensor, decoder: Tensor, counts: Counts) -> Recovery:
    """directions: [n, d] of the features; decoder: [m, d]. NaN throughout where no
    latent fires.
    """
    alive = counts.latent > 0
    n_alive = int(alive.sum())
    if not n_alive:
        return Recovery(*[float("nan")] * len(Recovery._fields))
    both, latent = counts.both[:, alive], counts.latent[alive]
    found = torch.nn.functional.normalize(decoder[alive].float(), dim=1)
    known = torch.nn.functional.normalize(directions.float(), dim=1)
    best_cos, best_f1 = torch.empty(len(known)), torch.empty(len(known))
    nearest, nearest_cos = (
        torch.zeros(n_alive, dtype=torch.int64),
        torch.full((n_alive,), -torch.inf),
    )
    for first in range(0, len(known), _BLOCK):
        part = slice(first, first + _BLOCK)
        cos = known[part] @ found.T
        best_cos[part] = cos.max(dim=1).values
        best_f1[part] = (
            _f1(both[part], counts.feature[part, None], latent).max(dim=1).values
        )
        top = cos.max(dim=0)
        nearest = torch.where(top.values > nearest_cos, top.indices + first, nearest)
        nearest_cos = torch.maximum(top.values, nearest_cos)
    common = counts.feature.argsort(descending=True, stable=True)[: len(decoder)]
    own = _f1(both[nearest, torch.arange(n_alive)], counts.feature[nearest], latent)
    return Recovery(
        float(best_cos.mean()),
        float((best_cos * counts.feature).sum() / counts.feature.sum()),
        float(best_f1[common].mean()),
        float(own.mean()),
        len(nearest.unique()) / n_alive,
    )


def _f1(both: Tensor, feature: Tensor, latent: Tensor) -> Tensor:
    return 2 * both / (feature + latent).clamp_min(1)
