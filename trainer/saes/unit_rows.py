"""Vectors kept at norm 1: decoder rows, their gradients, and what new ones begin as."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ROWS = 256  # few enough to be in cache when they are read again


def unit_rows(weight: Tensor) -> Tensor:
    """Return rows [n, d] at norm 1; rows of zeros stay zeros."""
    unit: Tensor = weight / _norms(weight)
    return unit


@torch.no_grad()
def normalise_rows(weight: Tensor) -> None:
    """Bring rows [n, d] to norm 1, in place."""
    weight.div_(_norms(weight))


def _norms(weight: Tensor) -> Tensor:
    # a row of zeros is divided by this, and stays zeros rather than NaN
    least = torch.finfo(weight.dtype).tiny
    norms: Tensor = weight.norm(dim=1, keepdim=True).clamp_min(least)
    return norms


@torch.no_grad()
def remove_parallel(weight: Tensor, gradient: Tensor | None) -> None:
    """Take out of each row's gradient what only changes the row's norm, in place.

    From "Towards Monosemanticity" (Bricken et al. 2023). Without it Adam's moments fill
    with a direction that normalising the rows undoes.

    Args:
        weight: [n, d].
        gradient: [n, d], that of `weight`.
    """
    assert gradient is not None
    size = _BLOCK_ROWS if weight.device.type == "cpu" else len(weight)
    blocks = zip(weight.split(size), gradient.split(size), strict=True)
    for w, g in blocks:
        # rows are at norm 1 only up to rounding, so that the square is divided by: a
        # gradient (3, 4) at the row (1, 0) has 3 along it, and becomes (0, 4)
        dots = (g * w).sum(dim=1, keepdim=True)
        squares = w.square().sum(dim=1, keepdim=True)
        g.addcmul_(dots / squares, w, value=-1)


def mean_norm(vectors: Tensor) -> Tensor | float:
    """Return the mean norm of vectors [n, d], a scalar; 1 where there are none."""
    return vectors.norm(dim=1).mean() if len(vectors) else 1.0
