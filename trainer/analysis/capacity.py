"""How many features a layer takes: how many at once, and how many at all.

Both by the number of neurons that a feature is spread over; the second half of the
experiment of `homogeneity.py` (docs/methods.md, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actstore.figures.table import Column, Table
from trainer.analysis.homogeneity import (
    Floats,
    HomogeneitySpec,
    drawing,
    seeds_of,
    spread_features,
)

STAGE = 2  # of the seed
MOST_FEATURES = 16_384  # of which near-orthogonality is looked for
PROBES = 256  # features whose nearest other is looked for
BLOCK = 1024  # others that are drawn at once
NON_HOMOGENEITY = 0.1  # thresholds of the document
NEARLY_ORTHOGONAL = 0.3


def active_features(others: Sequence[int], values: Floats) -> float:
    """Return with how many other features on non-homogeneity falls to 0.1.

    It is read off the straight line between the two points around it: with 0.3 at 2
    and 0.05 at 4 others it is 2 + 2 * (0.3 - 0.1) / (0.3 - 0.05) = 3.6.

    Args:
        others: Numbers of other features, ascending.
        values: Non-homogeneity at each, [n].

    Returns:
        The number; 0 where it is lower from the beginning, NaN where it never falls.
    """
    below = np.flatnonzero(values < NON_HOMOGENEITY)
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return 0.0
    share = (values[i - 1] - NON_HOMOGENEITY) / (values[i - 1] - values[i])
    return float(others[i - 1] + (others[i] - others[i - 1]) * share)


def orthogonal_features(
    rng: np.random.Generator,
    neurons: int,
    spread: int,
    *,
    signed: bool,
    most: int = MOST_FEATURES,
) -> int:
    """Return how many random features there may be before their MMCS is above 0.3.

    MMCS here is the mean, over features, of the largest cosine with another one. It is
    estimated from some of them, for every number of others at once.

    Args:
        rng: Draws the features.
        neurons: Width of the layer.
        spread: Neurons of a feature.
        signed: Entries have random signs.
        most: How many are tried.

    Returns:
        The number; `most` where even so many are nearly orthogonal.
    """
    probes = spread_features(rng, PROBES, neurons, spread, signed=signed)
    largest = np.full(PROBES, -1.0)
    for first in range(0, most, BLOCK):
        size = min(BLOCK, most - first)
        others = spread_features(rng, size, neurons, spread, signed=signed)
        cosines = np.column_stack([largest, probes @ others.T])
        so_far = np.maximum.accumulate(cosines, axis=1)
        above = np.flatnonzero(so_far[:, 1:].mean(axis=0) > NEARLY_ORTHOGONAL)
        if len(above):
            # With the feature itself and `above[0]` others MMCS is not above it yet.
            return first + int(above[0]) + 1
        largest = so_far[:, -1]
    return most


def compute_capacity(
    interference: Table,
    spec: HomogeneitySpec = HomogeneitySpec(),  # noqa: B008 (frozen)
) -> Table:
    """Return how many features a layer takes, by how many neurons each is spread over.

    Args:
        interference: What `compute_interference` gave for the same spec.
        spec: The sizes.
    """
    rows = []
    for seed in seeds_of(spec):
        for spread in spec.spreads:
            rng = drawing(seed, STAGE, spread)
            signed, positive = (
                orthogonal_features(rng, spec.neurons, spread, signed=with_signs)
                for with_signs in (True, False)
            )
            values = _values_of(interference, seed, spread)
            rows.append(
                (seed, spread, active_features(spec.others, values), signed, positive)
            )
    table = np.array(rows)
    columns = (
        Column("seed", table[:, 0].astype(np.int64)),
        Column("spread", table[:, 1].astype(np.int64), "neurons per feature"),
        Column("active", table[:, 2], "features that can be active"),
        Column(
            "orthogonal", table[:, 3].astype(np.int64), "nearly orthogonal features"
        ),
        Column(
            "orthogonal_positive",
            table[:, 4].astype(np.int64),
            "nearly orthogonal, all entries positive",
        ),
    )
    return Table(
        "capacity",
        "Many features, or many at once",
        "How many other features can be on before non-homogeneity is below"
        f" {NON_HOMOGENEITY}, and how many random features there can be before their"
        f" MMCS is above {NEARLY_ORTHOGONAL}, by the neurons a feature is spread over.",
        columns,
        {
            "neurons": spec.neurons,
            "seeds": spec.seeds,
            "most features tried": MOST_FEATURES,
        },
    )


def _values_of(table: Table, seed: int, spread: int) -> Floats:
    mine = (np.asarray(table["seed"]) == seed) & (np.asarray(table["spread"]) == spread)
    values: Floats = np.asarray(table["non_homogeneity"])[mine]
    return values
