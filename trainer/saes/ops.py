"""What several architectures share: the types they take and give, and pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.errors import SaeError
from trainer.kernels.nonzeros import Chosen

Layer = int | Tensor | None
# the weight of a kind's sparsity penalty; the TopK kinds have none
Penalty = float | Tensor
Centre = Callable[[Tensor], Tensor]  # rows [n, d] to [d]
_BLOCK_ROWS = 256  # what is read twice should still be in cache


class ScaledRows(NamedTuple):
    """A batch as an architecture sees it, after rescaling.

    x: [B, d], for a crosscoder [B, n_sites, d]; layer: int64 [B], index of each row's
    site; norm: [n_sites], mean L2 norm of each layer's rows; target: [B, d_out], what a
    transcoder reconstructs; batch_position: int64 [B] on the host, ascending, where
    each row is in the whole batch, of which these may be a part; None for a whole one;
    chosen: what a selection over the whole batch keeps of these rows, for kinds that
    have one; None: made of them.
    """

    x: Tensor
    layer: Tensor | None = None
    norm: Tensor | None = None
    target: Tensor | None = None
    batch_position: Tensor | None = None
    chosen: Chosen | None = None

    @property
    def wanted(self) -> Tensor:
        """What the reconstruction is compared with."""
        return self.x if self.target is None else self.target


class Shape(NamedTuple):
    """Sizes that the data gives. d: width of a row; d_out: of a transcoder's target;
    n_sites: layers of a mixture; parts: a crosscoder's row is so many sites' vectors of
    d / parts side by side.
    """

    d: int
    d_out: int | None = None
    n_sites: int = 1
    parts: int = 1

    @property
    def out(self) -> int:
        """Width of a reconstruction."""
        return self.d if self.d_out is None else self.d_out

    def bias(self, per_layer: bool) -> tuple[int, ...]:
        """Shape of a decoder bias."""
        return (self.n_sites, self.out) if per_layer else (self.out,)


class Step(NamedTuple):
    """What one forward in training gives.

    loss: scalar; reconstruction: as the target; fired: int64 [m], rows on which each
    latent was above 0; l0: mean latents above 0 per row; parts: the terms of the loss,
    by name.
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
    """ScaledRows at norm 1."""
    unit: Tensor = weight / weight.norm(dim=1, keepdim=True).clamp_min(
        torch.finfo(weight.dtype).tiny
    )
    return unit


@torch.no_grad()
def normalise_rows(weight: Tensor) -> None:
    """ScaledRows at norm 1, in place."""
    weight.div_(
        weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    )


@torch.no_grad()
def remove_parallel(weight: Tensor, gradient: Tensor | None) -> None:
    """Take out of each row's gradient what only changes the row's norm (Towards
    Monosemanticity), in place.
    """
    assert gradient is not None
    size = _BLOCK_ROWS if weight.device.type == "cpu" else len(weight)
    for w, g in zip(weight.split(size), gradient.split(size), strict=True):
        along = (g * w).sum(dim=1, keepdim=True) / w.square().sum(dim=1, keepdim=True)
        g.addcmul_(along, w, value=-1)


def of_layer(values: Tensor, layer: Layer) -> Tensor:
    """The entry of each row's layer: values [n_sites, p] to [B, p] (or [p] for one
    layer); values [p] stay as they are.

    Raises SaeError where the values differ by layer and none is given.
    """
    if values.ndim == 1:
        return values
    if layer is None:
        raise SaeError(
            f"this SAE has parts for each of {len(values)} layers: say with `layer`"
            " which one a row is from"
        )
    return values[layer] if isinstance(layer, int) else values.index_select(0, layer)


def encoder_input(x: Tensor, b_dec: Tensor, layer: Layer, shape: Shape) -> Tensor:
    """x - b_dec; x for a transcoder, whose b_dec is in other coordinates."""
    return x if shape.d_out is not None else x - of_layer(b_dec, layer)


def first_encoder(decoder: Tensor, shape: Shape, by_latent: bool = False) -> Tensor:
    """An encoder [d, m] to begin with: the decoder transposed; for a transcoder, random
    columns of norm 1.

    by_latent: columns contiguous in memory, as the gradient of sparse codes comes; else
    rows, as a dense one does.
    """
    rows = (
        decoder.detach().clone()
        if shape.d_out is None
        else unit_rows(torch.randn(len(decoder), shape.d))
    )
    return rows.T if by_latent else rows.T.contiguous()


def mean(rows: Tensor) -> Tensor:
    """[n, d] to [d]."""
    return rows.mean(dim=0)


@torch.no_grad()
def geometric_median(
    rows: Tensor, iterations: int = 100, tolerance: float = 1e-6
) -> Tensor:
    """The point [d] with the least sum of distances to rows [n, d], by Weiszfeld's
    iteration in float64.
    """
    points = rows.double()
    at = points.mean(dim=0)
    for _ in range(iterations):
        weights = 1 / (points - at).norm(dim=1).clamp_min(
            torch.finfo(torch.float64).tiny ** 0.5
        )
        new = (weights[:, None] * points).sum(dim=0) / weights.sum()
        moved = (new - at).norm()
        at = new
        if moved <= tolerance * at.norm():
            break
    return at.to(rows.dtype)
