"""Latents of a large SAE that are children of one latent, and pairs of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.analysis.cosines import Matches

MOST_PAIRS = 64  # pairs of one family that are looked at
RANDOM_FOR_EACH = 4  # random pairs for each pair of children
NEAREST = 16  # latents among which one of similar density is drawn
NAMED = 8  # children that a row of a table names


class Family(NamedTuple):
    """Children of one latent.

    Attributes:
        parent: The latent of the small SAE.
        children: Latents of the large SAE that fire, int64 [n].
        pairs: Pairs of them, int64 [p, 2].
        random: Pairs of latents of similar densities, int64 [q, 2].
    """

    parent: int
    children: NDArray[np.int64]
    pairs: NDArray[np.int64]
    random: NDArray[np.int64]

    @property
    def named(self) -> str:
        """The numbers of the first children, and how many more there are."""
        shown = " ".join(map(str, self.children[:NAMED]))
        more = len(self.children) - NAMED
        return f"{shown} and {more} more" if more > 0 else shown


def families_of(
    matches: Matches, fires: NDArray[np.int64], threshold: float, seed: int
) -> list[Family]:
    """Return the latents with several children that fire, by the latents' numbers.

    Args:
        matches: The most similar latent of the small SAE for each of the large one.
        fires: On how many rows each latent of the large SAE fires, int64 [m].
        threshold: Cosine above which a latent is a child.
        seed: Of the pairs that are drawn.
    """
    parents = matches.latent.cpu().numpy()
    is_child = (matches.cosine.cpu().numpy() > threshold) & (fires > 0)
    children = np.flatnonzero(is_child)
    order = children[np.argsort(parents[children], kind="stable")]
    names, firsts = np.unique(parents[order], return_index=True)
    by_density = np.flatnonzero(fires > 0)
    by_density = by_density[np.argsort(fires[by_density], kind="stable")]
    place = np.zeros(len(fires), dtype=np.int64)
    place[by_density] = np.arange(len(by_density))
    families = []
    for parent, members in zip(names, np.split(order, firsts[1:]), strict=True):
        if len(members) < 2:
            continue
        draws = np.random.default_rng(np.random.SeedSequence([seed, int(parent)]))
        pairs = _pairs(members, draws)
        random = _random_pairs(pairs, by_density, place, draws)
        families.append(Family(int(parent), members, pairs, random))
    return families


def _pairs(members: NDArray[np.int64], draws: np.random.Generator) -> NDArray[np.int64]:
    """Return pairs of members, int64 [p, 2]: all, or `MOST_PAIRS` that are drawn."""
    one, other = np.triu_indices(len(members), 1)
    if len(one) > MOST_PAIRS:
        kept = np.sort(draws.choice(len(one), MOST_PAIRS, replace=False))
        one = one[kept]
        other = other[kept]
    return np.stack([members[one], members[other]], axis=1)


def _random_pairs(
    pairs: NDArray[np.int64],
    by_density: NDArray[np.int64],
    place: NDArray[np.int64],
    draws: np.random.Generator,
) -> NDArray[np.int64]:
    """Return pairs of latents whose densities are near those of pairs [p, 2].

    Each is drawn among the `NEAREST` latents before and after it in density.

    Args:
        pairs: The pairs.
        by_density: Latents that fire, by how often, int64 [n].
        place: Where a latent is in that order, int64 [m].
        draws: Where chance comes from.
    """
    many = np.repeat(place[pairs], RANDOM_FOR_EACH, axis=0)
    moved = many + draws.integers(-NEAREST, NEAREST + 1, many.shape)
    latents = by_density[np.clip(moved, 0, len(by_density) - 1)]
    kept: NDArray[np.int64] = latents[latents[:, 0] != latents[:, 1]]
    return kept
