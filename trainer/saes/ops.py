"""Pure functions that several architectures share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Step(NamedTuple):
    """What one forward in training gives.

    loss: scalar; reconstruction: [B, d]; fired: int64 [m], rows on which each latent was above 0; l0: mean latents
    above 0 per row; parts: the terms of the loss, by name.
    """

    loss: Tensor
    reconstruction: Tensor
    fired: Tensor
    l0: Tensor
    parts: dict[str, Tensor]


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean over rows of the squared error, summed over d (metrics: `mse`)."""
    return (reconstruction - x).square().sum(dim=-1).mean()


def unit_rows(weight: Tensor) -> Tensor:
    """Rows at norm 1."""
    unit: Tensor = weight / weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return unit


@torch.no_grad()
def remove_parallel(weight: Tensor, gradient: Tensor) -> None:
    """Take out of each row's gradient what only changes the row's norm (Towards Monosemanticity), in place."""
    along = (gradient * weight).sum(dim=1, keepdim=True) / weight.square().sum(dim=1, keepdim=True)
    gradient.sub_(along * weight)


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, those below 0 set to 0: values and indices, both [B, k]."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return values.relu(), indices


def sparse_decode(values: Tensor, indices: Tensor, decoder: Tensor) -> Tensor:
    """sum_j values[b, j] * decoder[indices[b, j]]: [B, d] without a dense [B, m] product."""
    decoded: Tensor = embedding_bag(indices, decoder, per_sample_weights=values.to(decoder.dtype), mode="sum")
    return decoded


def fired_counts(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """Rows on which each latent is above 0, from sparse codes: int64 [m]."""
    return torch.bincount(indices[values > 0], minlength=n_latents)
