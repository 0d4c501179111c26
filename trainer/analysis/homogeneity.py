"""How linear a layer answers to a direction, by how many neurons it is spread over.

An experiment of its own, without any store (the fifth document, docs/methods.md,
section 5). A layer of n neurons computes GELU; a feature is a unit vector over some of
them, all its entries positive. Its response is homogeneous where a straight line
describes it as well as a parabola.
"""

from __future__ import annotations

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
STAGE = 1  # of the seed


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
        for seed in seeds_of(spec)
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


def _mean_of_draws(spec: HomogeneitySpec, seed: int, spread: int, n_on: int) -> float:
    rng = drawing(seed, STAGE, spread, n_on)
    values = []
    for _ in range(spec.draws):
        x, y = response(rng, spec, spread, n_on)
        is_test = np.zeros(len(x), bool)
        is_test[: round(TEST_SHARE * len(x))] = True  # points come in no order
        values.append(non_homogeneity(x, y, is_test))
    return float(np.mean(values))


def drawing(*numbers: int) -> np.random.Generator:
    """Return what draws by chance for a seed and a stage of it."""
    return np.random.default_rng(np.random.SeedSequence(numbers))


def seeds_of(spec: HomogeneitySpec) -> range:
    """Return the seeds of an experiment."""
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
