"""Solves for sparse codes with the decoder as it is: matching pursuit, non-negative.

Orthogonal matching pursuit (Pati et al. 1993) with codes that are not below 0, as those
of an encoder are: of a row, the direction that what is left agrees with most is taken
in, then all codes so far are solved for again. Rows go together as one batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SWEEPS = 10  # rounds over the codes, while directions are being taken in
LAST_SWEEPS = 1000  # rounds at the end, at most
TOLERANCE = 1e-6  # of a round's largest change, relative to the largest code


class Codes(NamedTuple):
    """Sparse codes of rows.

    Attributes:
        latent: Which latents a row may have, int64 [n, k].
        value: Their codes, float32 [n, k]; 0 where a row has fewer.
        error: Squared error of each row, float64 [n].
    """

    latent: Tensor
    value: Tensor
    error: Tensor


@torch.no_grad()
def pursued(x: Tensor, decoder: Tensor, counts: Tensor) -> Codes:
    """Return codes with at most so many latents in each row.

    Args:
        x: Rows less the decoder's bias, [n, d].
        decoder: Directions [m, d]; those of 0 are never taken.
        counts: How many latents each row may have, int64 [n].
    """
    norms = decoder.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, decoder / norms, 0.0)
    n = len(x)
    width = min(int(counts.max()) if n else 0, len(decoder))
    latent = torch.zeros(n, width, dtype=torch.int64, device=x.device)
    is_used = torch.zeros(n, width, dtype=torch.bool, device=x.device)
    taken = torch.zeros(n, width, x.shape[1], device=x.device)
    gram = torch.zeros(n, width, width, device=x.device)
    value = torch.zeros(n, width, device=x.device)
    left = x.clone()
    for place in range(width):
        agreement = left @ unit.T
        # A direction is taken once.
        agreement.scatter_(1, latent[:, :place], -torch.inf)
        best, chosen = agreement.max(dim=1)
        is_new = (best > 0) & (place < counts)
        if not bool(is_new.any()):
            break
        is_used[:, place] = is_new
        latent[:, place] = chosen
        direction = unit[chosen] * is_new[:, None]
        taken[:, place] = direction
        now = slice(0, place + 1)
        so_far = taken[:, now]
        products = _products(so_far, direction)
        gram[:, place, now] = products
        gram[:, now, place] = products
        target = _products(so_far, x)
        codes = non_negative(gram[:, now, now], target, value[:, now], SWEEPS)
        value[:, now] = codes
        left = x - _summed(codes, so_far)
    return _solved(x, taken, gram, value, latent, is_used, norms[:, 0])


@torch.no_grad()
def refitted(x: Tensor, decoder: Tensor, latent: Tensor, is_used: Tensor) -> Codes:
    """Return the best codes of rows on latents that are given.

    Args:
        x: Rows less the decoder's bias, [n, d].
        decoder: Directions [m, d].
        latent: Latents of each row, int64 [n, k].
        is_used: Where `latent` holds one, bool [n, k].
    """
    norms = decoder.norm(dim=1)
    taken = decoder[latent] / norms[latent].clamp_min(1e-30)[..., None]
    taken = taken * is_used[..., None]
    gram = taken @ taken.transpose(1, 2)
    start = torch.zeros(latent.shape, device=x.device)
    return _solved(x, taken, gram, start, latent, is_used, norms)


def _solved(
    x: Tensor,
    taken: Tensor,
    gram: Tensor,
    start: Tensor,
    latent: Tensor,
    is_used: Tensor,
    norms: Tensor,
) -> Codes:
    """Return the best codes on directions of norm 1, in the decoder's units.

    Args:
        x: Rows [n, d].
        taken: Unit directions of each row, [n, k, d]; 0 where it has fewer.
        gram: Their products, [n, k, k].
        start: Codes to begin with, [n, k].
        latent: Their latents, int64 [n, k].
        is_used: Where there is one, bool [n, k].
        norms: Norms of all directions, [m].
    """
    target = _products(taken, x)
    value = non_negative(gram, target, start, LAST_SWEEPS)
    left = x - _summed(value, taken)
    error = left.double().square().sum(dim=1)
    scaled = torch.where(is_used, value / norms[latent].clamp_min(1e-30), 0.0)
    return Codes(latent, scaled, error)


def _products(directions: Tensor, rows: Tensor) -> Tensor:
    """Return [n, k]: products of each row [n, d] with its directions [n, k, d]."""
    products: Tensor = (directions @ rows[..., None])[..., 0]
    return products


def _summed(codes: Tensor, directions: Tensor) -> Tensor:
    """Return [n, d]: the sums of directions [n, k, d] times codes [n, k]."""
    sums: Tensor = (codes[:, None] @ directions)[:, 0]
    return sums


def non_negative(gram: Tensor, target: Tensor, start: Tensor, sweeps: int) -> Tensor:
    """Return codes c >= 0 that minimise c G c / 2 - c t, by coordinate descent.

    Args:
        gram: G, [n, k, k], symmetric; a latent that is not used has zeros.
        target: t, [n, k].
        start: Codes to begin with, [n, k].
        sweeps: Rounds over the codes, at most.

    Returns:
        [n, k].
    """
    codes = start.clone()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    slope = _products(gram, codes) - target
    for _ in range(sweeps):
        largest = torch.zeros(len(codes), device=codes.device)
        for place in range(codes.shape[1]):
            size = diagonal[:, place]
            step = torch.where(size > 0, -slope[:, place] / size, 0.0)
            step = torch.maximum(step, -codes[:, place])
            codes[:, place] += step
            slope += step[:, None] * gram[:, :, place]
            largest = torch.maximum(largest, step.abs())
        limit = TOLERANCE * codes.amax(dim=1) if codes.shape[1] else largest
        if bool((largest <= limit).all()):
            break
    return codes
