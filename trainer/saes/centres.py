"""The centre of a cloud of rows, at which a decoder's bias begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Centre = Callable[[Tensor], Tensor]
"""From rows [n, d] to one point [d]."""


def mean(rows: Tensor) -> Tensor:
    """Return the mean [d] of rows [n, d]."""
    return rows.mean(dim=0)


@torch.no_grad()
def geometric_median(
    rows: Tensor, iterations: int = 100, tolerance: float = 1e-6
) -> Tensor:
    """Return the point [d] with the least sum of distances to rows [n, d].

    Unlike the mean it hardly moves for a few huge rows. By Weiszfeld's iteration, the
    mean weighted by 1 / distance to the last point, in float64, until it moves by less
    than `tolerance` of the point's norm.
    """
    points = rows.double()
    # a row at the point itself would weigh infinitely much
    nearest = torch.finfo(torch.float64).tiny ** 0.5
    point = points.mean(dim=0)
    for _ in range(iterations):
        distances = (points - point).norm(dim=1)
        weights = 1 / distances.clamp_min(nearest)
        weighted = weights[:, None] * points
        moved_to = weighted.sum(dim=0) / weights.sum()
        distance = (moved_to - point).norm()
        point = moved_to
        if distance <= tolerance * point.norm():
            break
    return point.to(rows.dtype)
