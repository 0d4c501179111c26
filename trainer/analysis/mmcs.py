"""MMCS: how well a dictionary has found features (docs/methods.md, section 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.analysis.directions import (
    Nearest,
    nearest_both_ways,
    random_directions,
    unit_directions,
)
from trainer.errors import RunError

FOUND = 0.9  # cosine from which a feature counts as found
FLOOR_STAGE = 7  # of the seed
FLOOR_FEATURES = 512  # random features that the floor is the mean of
FLOOR_BLOCK = 8192  # random latents that are drawn at once


class Mmcs(NamedTuple):
    """How well a dictionary has found features.

    Attributes:
        mmcs: Mean over features of the largest cosine with the dictionary.
        found: Share of features whose largest cosine is above 0.9.
        uniqueness: Distinct features among those that are nearest to the latents, over
            the number of latents: 1 where no two latents are nearest to the same one.
    """

    mmcs: float
    found: float
    uniqueness: float


def mmcs(features: Tensor, dictionary: Tensor) -> Mmcs:
    """Measure how well a dictionary has found features.

    Norms do not matter. A latent of norm 0 has no direction and does not count.

    Args:
        features: The features, [n, d].
        dictionary: The decoder directions, [m, d].

    Raises:
        RunError: Widths differ, or there is no direction on one of the sides.
    """
    directions = _with_norm(dictionary, "the dictionary")
    wanted = _with_norm(features, "the features")
    if wanted.shape[1] != directions.shape[1]:
        raise RunError(
            f"wanted features and a dictionary of one width, got features of d"
            f" {wanted.shape[1]} and a dictionary of d {directions.shape[1]}"
        )
    of_features, of_latents = nearest_both_ways(wanted, directions)
    return _summary(of_features, of_latents)


def random_floor(n_latents: int, d: int, seed: int = 0) -> float:
    """Return the MMCS that a dictionary of random directions has.

    It does not depend on the features: the mean of the largest of m cosines of random
    directions with a fixed one (docs/methods.md, section 4), from a sample.

    Args:
        n_latents: Size of the dictionary, m.
        d: Width.
        seed: Seed of the sample.
    """
    features = random_directions(FLOOR_FEATURES, d, (seed, FLOOR_STAGE))
    largest = torch.full((FLOOR_FEATURES,), -torch.inf)
    for block, first in enumerate(range(0, n_latents, FLOOR_BLOCK)):
        size = min(FLOOR_BLOCK, n_latents - first)
        latents = random_directions(size, d, (seed, FLOOR_STAGE, 1 + block))
        cosines = features @ latents.T
        largest = torch.maximum(largest, cosines.max(dim=1).values)
    return float(largest.double().mean())


def _summary(of_features: Nearest, of_latents: Nearest) -> Mmcs:
    cosines = of_features.cosine.double().clamp(-1, 1)
    n_distinct = len(of_latents.which.unique())
    return Mmcs(
        mmcs=float(cosines.mean()),
        found=float((cosines > FOUND).double().mean()),
        uniqueness=n_distinct / len(of_latents.which),
    )


def _with_norm(directions: Tensor, what: str) -> Tensor:
    """Return the directions whose norm is not 0, at norm 1.

    Raises:
        RunError: There is none, or one is not finite.
    """
    if not bool(torch.isfinite(directions).all()):
        raise RunError(f"{what}: wanted finite directions, got NaN or infinity")
    kept = directions[directions.norm(dim=1) > 0]
    if not len(kept):
        raise RunError(
            f"{what}: wanted at least one direction, got"
            f" {len(directions)}, all of norm 0"
        )
    return unit_directions(kept)


NOT_KNOWN = Mmcs(math.nan, math.nan, math.nan)
