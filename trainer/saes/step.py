"""The results of a training step, and the error that every architecture's loss has."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Penalty = float | Tensor
"""The weight of a kind's sparsity penalty; the TopK kinds have none."""


class Step(NamedTuple):
    """The results of one forward in training."""

    loss: Tensor
    """Scalar: the mean over rows."""
    reconstruction: Tensor
    """[B, d_out]; a crosscoder's [B, n_sites, d]."""
    fired: Tensor
    """int64 [m]: on how many rows each latent was above 0; of the latents here, where a
    dictionary is split."""
    l0: Tensor
    """Scalar: mean number of latents above 0 per row."""
    parts: dict[str, Tensor]
    """The terms of the loss, by name: scalars."""
    smallest_kept: Tensor | None = None
    """`Selection.smallest`, which moves the thresholds after the update; None for kinds
    that do not select over a batch."""


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the mean over rows of the squared error, summed over d.

    `mse` in docs/metrics.md. Both arguments: [B, d].
    """
    squares = (reconstruction - x).square()
    return squares.sum(dim=-1).mean()


def firings(latents: Tensor) -> Tensor:
    """Return on how many rows each of dense latents [B, m] is above 0: int64 [m]."""
    return (latents.detach() > 0).sum(dim=0)
