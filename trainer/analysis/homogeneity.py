"""How linear a layer answers to a direction, by how many neurons it is spread over.

An experiment of its own, without any store (the fifth document, docs/methods.md,
section 5). A layer of n neurons computes GELU; a feature is a unit vector over some of
them, all its entries positive. Its response is homogeneous where a straight line
describes it as well as a parabola.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked
from actstore.figures.table import Column, Table
from trainer.errors import TrainerError

Floats = NDArray[np.float64]
TEST_SHARE = 0.2  # of the points, which no regression is fitted to
# Stages of the seed.
INTERFERENCE, ORTHOGONAL = 1, 2
MOST_FEATURES = 16_384  # of which near-orthogonality is looked for
PROBES = 256  # features whose nearest other is looked for
NON_HOMOGENEITY = 0.1  # thresholds of the document
NEARLY_ORTHOGONAL = 0.3


class HomogeneitySpec(NamedTuple):
    """The sizes of the experiment.

    Attributes:
        neurons: Width of the layer, n.
        spreads: Over how many neurons a feature is spread.
        others: Numbers of other features that are on, ascending from 0.
        points: Points of each response.
        draws: Sets of features that a response is the mean of.
        seeds: How often all is done again.
        seed: The first seed.
    """

    neurons: int = 100
    spreads: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20, 35, 60, 100)
    others: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
    points: int = 1000
    draws: int = 30
    seeds: int = 3
    seed: int = 0


QUICK = HomogeneitySpec(
    neurons=24, spreads=(1, 3, 12), others=(0, 2, 8, 32), points=200, draws=3
)


def gelu(x: Floats) -> Floats:
    """Return GELU of numbers, float64 of the same shape."""
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def non_homogeneity(x: Floats, y: Floats, is_test: NDArray[np.bool_]) -> float:
    """Return how much better a parabola predicts a response than a straight line.

    It is R² of the quadratic regression minus R² of the linear one, on points that
    neither was fitted to. y = 3 x + 1 gives 0, y = x² on even points gives 1.

    Args:
        x: Strengths of the feature, [n].
        y: Responses, [n].
        is_test: Which points are held out, bool [n].
    """
    scores = []
    for degree in (1, 2):
        powers = np.vander(x, degree + 1)
        weights, *_ = np.linalg.lstsq(powers[~is_test], y[~is_test], rcond=None)
        error = y[is_test] - powers[is_test] @ weights
        variance = y[is_test] - y[is_test].mean()
        total = float(variance @ variance)
        # A response that does not vary is homogeneous, whatever is fitted.
        scores.append(1 - float(error @ error) / total if total > 0 else 1.0)
    return scores[1] - scores[0]


def spread_features(
    rng: np.random.Generator, n: int, neurons: int, spread: int, *, signed: bool = False
) -> Floats:
    """Return features spread evenly over some neurons, unit vectors [n, neurons].

    Args:
        rng: Draws the neurons, each set as likely as any other.
        n: How many features.
        neurons: Width of the layer.
        spread: Neurons of a feature.
        signed: Entries have random signs; else all are positive.
    """
    places = rng.random((n, neurons)).argsort(axis=1)[:, :spread]
    entries = np.full((n, spread), spread**-0.5)
    if signed:
        entries *= rng.choice((-1.0, 1.0), (n, spread))
    features = np.zeros((n, neurons))
    np.put_along_axis(features, places, entries, axis=1)
    return features


def response(
    rng: np.random.Generator, spec: HomogeneitySpec, spread: int, n_on: int
) -> tuple[Floats, Floats]:
    """Return strengths of a feature and the layer's response in its direction.

    All features are on, at strengths drawn evenly from ±sqrt(spread).

    Args:
        rng: Draws features and strengths.
        spec: The sizes.
        spread: Neurons of each feature.
        n_on: Other features that are on.

    Returns:
        Strengths and responses of the feature of interest, float64 [points] each.
    """
    features = spread_features(rng, n_on + 1, spec.neurons, spread)
    most = spread**0.5
    strengths = rng.uniform(-most, most, (spec.points, n_on + 1))
    out = gelu(strengths @ features)
    return strengths[:, 0], out @ features[0]


@checked(spec=arguments.one_of(tuple))
def compute_interference(spec: HomogeneitySpec = HomogeneitySpec()) -> Table:  # noqa: B008 (frozen)
    """Return non-homogeneity by spread and number of other features that are on.

    Raises:
        TrainerError: A spread does not fit the layer, or numbers do not ascend from 0.
    """
    _check(spec)
    rows = [
        (seed, spread, n_on, _mean_of_draws(spec, seed, spread, n_on))
        for seed in _seeds(spec)
        for spread in spec.spreads
        for n_on in spec.others
    ]
    table = np.array(rows)
    columns = (
        Column("seed", table[:, 0].astype(np.int64)),
        Column("spread", table[:, 1].astype(np.int64), "neurons per feature"),
        Column("n_on", table[:, 2].astype(np.int64), "other features on"),
        Column("non_homogeneity", table[:, 3], "non-homogeneity"),
    )
    return Table(
        "interference",
        "How other features drown a response that is not linear",
        "R² of a quadratic minus that of a linear regression of the layer's response to"
        " one feature, on held-out points. The more features are on, and the more"
        " neurons each is spread over, the more linear the response.",
        columns,
        {"neurons": spec.neurons, "seeds": spec.seeds},
    )


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
    block = 1024
    for first in range(0, most, block):
        size = min(block, most - first)
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
    for seed in _seeds(spec):
        for spread in spec.spreads:
            rng = _rng(seed, ORTHOGONAL, spread)
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


def _mean_of_draws(spec: HomogeneitySpec, seed: int, spread: int, n_on: int) -> float:
    rng = _rng(seed, INTERFERENCE, spread, n_on)
    values = []
    for _ in range(spec.draws):
        x, y = response(rng, spec, spread, n_on)
        is_test = np.zeros(len(x), bool)
        is_test[: round(TEST_SHARE * len(x))] = True  # points come in no order
        values.append(non_homogeneity(x, y, is_test))
    return float(np.mean(values))


def _values_of(table: Table, seed: int, spread: int) -> Floats:
    mine = (np.asarray(table["seed"]) == seed) & (np.asarray(table["spread"]) == spread)
    values: Floats = np.asarray(table["non_homogeneity"])[mine]
    return values


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(numbers))


def _seeds(spec: HomogeneitySpec) -> range:
    return range(spec.seed, spec.seed + spec.seeds)


def _check(spec: HomogeneitySpec) -> None:
    if not all(0 < spread <= spec.neurons for spread in spec.spreads):
        raise TrainerError(
            f"--spreads: wanted numbers of neurons from 1 to {spec.neurons}, got"
            f" {', '.join(map(str, spec.spreads))}"
        )
    others = spec.others
    if not others or others[0] != 0 or sorted(set(others)) != list(others):
        raise TrainerError(
            "others: wanted numbers of other features that ascend from 0, got"
            f" {', '.join(map(str, others))}"
        )
