"""MMCS: how well a dictionary has found features (docs/methods.md, section 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.analysis.cosines import Matches, mutual_max_cosine, without_direction
from trainer.errors import RunError

FOUND = 0.9  # cosine from which a feature counts as found


class Mmcs(NamedTuple):
    """How well a dictionary has found features.

    Attributes:
        mmcs: Mean over features of the largest cosine with the dictionary.
        found: Share of features whose largest cosine is above 0.9.
        uniqueness: Distinct features among those that are nearest to the latents, over
            the number of latents: 1 where no two latents are nearest to the same one.
        without_direction: Latents of norm 0, which do not count.
    """

    mmcs: float
    found: float
    uniqueness: float
    without_direction: int = 0


def mmcs(features: Tensor, dictionary: Tensor) -> Mmcs:
    """Measure how well a dictionary has found features.

    Norms do not matter. A latent of norm 0 has no direction and does not count.

    Args:
        features: The features, [n, d].
        dictionary: The decoder directions, [m, d].

    Raises:
        RunError: Widths differ, or there is no direction on one of the sides.
    """
    _check(dictionary, "the dictionary")
    _check(features, "the features")
    if features.shape[1] != dictionary.shape[1]:
        raise RunError(
            f"wanted features and a dictionary of one width, got features of d"
            f" {features.shape[1]} and a dictionary of d {dictionary.shape[1]}"
        )
    of_features, of_latents = mutual_max_cosine(dictionary, features)
    return _summary(of_features, of_latents)


def _summary(of_features: Matches, of_latents: Matches) -> Mmcs:
    cosines = of_features.cosine.double()
    cosines = cosines[~cosines.isnan()]
    nearest = of_latents.latent[of_latents.latent >= 0]
    return Mmcs(
        mmcs=float(cosines.mean()),
        found=float((cosines > FOUND).double().mean()),
        uniqueness=len(nearest.unique()) / len(nearest),
        without_direction=of_latents.without_direction,
    )


def _check(directions: Tensor, what: str) -> None:
    """Check that directions are finite and at least one has a norm above 0.

    Raises:
        RunError: They are not.
    """
    if not bool(torch.isfinite(directions).all()):
        raise RunError(f"{what}: wanted finite directions, got NaN or infinity")
    if without_direction(directions) == len(directions):
        raise RunError(
            f"{what}: wanted at least one direction, got"
            f" {len(directions)}, all of norm 0"
        )


NOT_KNOWN = Mmcs(math.nan, math.nan, math.nan)
