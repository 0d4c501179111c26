"""Draws a layer's response to one feature: the curves of `homogeneity.py`.

y = f_out · GELU(x f_in), where a feature is one neuron, or spread over all of them
(docs/methods.md, section 5).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Figure, Rule, Series
from actstore.figures.table import Column, Table
from trainer.analysis.capacity import NON_HOMOGENEITY
from trainer.analysis.homogeneity import gelu
from trainer.analysis.statistics_of_seeds import means_at

Floats = NDArray[np.float64]
STRONGEST = 3.0  # of the strengths of an unscaled feature
POINTS = 61
ALIGNED, SPREAD, BALANCED = "aligned", "spread", "balanced signs"


def compute_response_curves(neurons: int = 100) -> Table:
    """Return the curves of aligned and spread features, as input and as output.

    Strengths of an input are ±3, and scaled ±3 sqrt(n): then a spread feature has the
    curve of a single neuron. One whose signs are balanced has none in either case.

    Args:
        neurons: Width of the layer, n.
    """
    curves = list(_curves(neurons))
    columns = (
        Column("input", [name for name, *_ in curves for _ in range(POINTS)]),
        Column("output", [name for _, name, *_ in curves for _ in range(POINTS)]),
        Column("scaled", np.repeat([scaled for *_, scaled, _, _ in curves], POINTS)),
        Column(
            "x", np.concatenate([x for *_, x, _ in curves]), "strength of the input"
        ),
        Column("y", np.concatenate([y for *_, y in curves]), "strength of the output"),
    )
    return Table(
        "response_curves",
        "What a layer answers to one feature",
        "A feature that is one neuron, or is spread over all, as input and as output of"
        " GELU. A spread one is nearly linear at the same strength, and as bent as a"
        " neuron at sqrt(n) times that (scaled).",
        columns,
        {"neurons": neurons},
    )


def _curves(neurons: int) -> Iterator[tuple[str, str, int, Floats, Floats]]:
    """Yield input, output, whether it is scaled, x [POINTS] and y [POINTS]."""
    signs = np.where(np.arange(neurons) % 2 == 0, 1.0, -1.0)
    features = {
        ALIGNED: np.eye(neurons)[0],
        SPREAD: np.full(neurons, neurons**-0.5),
        BALANCED: signs * neurons**-0.5,
    }
    pairs = [(one, other) for one in (ALIGNED, SPREAD) for other in (ALIGNED, SPREAD)]
    for scaled in (0, 1):
        for source, target in [*pairs, (BALANCED, BALANCED)]:
            grows = scaled == 1 and source != ALIGNED
            most = STRONGEST * (neurons**0.5 if grows else 1.0)
            x = np.linspace(-most, most, POINTS)
            y = gelu(np.outer(x, features[source])) @ features[target]
            yield source, target, scaled, x, y


def plot_response_curves(table: Table) -> tuple[Figure, ...]:
    """Return a figure for each curve of `compute_response_curves`."""
    keys = list(zip(table["input"], table["output"], table["scaled"], strict=True))
    figures = []
    for key in dict.fromkeys(keys):
        source, target, scaled = key
        mine = np.array([each == key for each in keys])
        strength = "scaled by sqrt(n)" if scaled else "unscaled"
        words = [text.partition(" ")[0] for text in (source, target, strength)]
        x, y = np.asarray(table["x"])[mine], np.asarray(table["y"])[mine]
        one = Figure(
            f"response_curves-{'-'.join(words)}",
            Axis("strength of the input"),
            Axis("strength of the output"),
            (Series("", x, y, "line", colour=0),),
            f"{source} in, {target} out, {strength}",
        )
        figures.append(one)
    return tuple(figures)


def plot_interference(table: Table) -> tuple[Figure, ...]:
    """Return the figure of `compute_interference`: a line for each spread."""
    spreads = np.unique(table["spread"])
    series = []
    for i, spread in enumerate(spreads.tolist()):
        mine = np.asarray(table["spread"]) == spread
        x = np.asarray(table["n_on"])[mine]
        y = np.asarray(table["non_homogeneity"])[mine]
        shade = i / max(1, len(spreads) - 1)
        # 0 has no place on a logarithmic axis: numbers of features that are on, with
        # the one of interest.
        series.append(_over_seeds(f"{spread} neurons", x + 1, y, shade=shade))
    return (
        Figure(
            "interference",
            Axis("features on, with that of interest", log=True),
            Axis("non-homogeneity (difference of R²)"),
            tuple(series),
            "How other features drown the response",
            (Rule(NON_HOMOGENEITY, "threshold"),),
        ),
    )


def plot_capacity(table: Table) -> tuple[Figure, ...]:
    """Return the figure of `compute_capacity`."""
    x = np.asarray(table["spread"])
    names = {
        "active": "can be active at once",
        "orthogonal": "nearly orthogonal",
        "orthogonal_positive": "nearly orthogonal, all entries positive",
    }
    series = [
        _over_seeds(label, x, np.asarray(table[name], np.float64))
        for name, label in names.items()
    ]
    return (
        Figure(
            "capacity",
            Axis("neurons per feature", log=True),
            Axis("features", log=True),
            tuple(series),
            "Many features, or many at once",
        ),
    )


def _over_seeds(
    name: str, x: NDArray[np.generic], y: Floats, shade: float | None = None
) -> Series:
    """Return the means at each place, with error bars of 95 %."""
    at, means, low, high = means_at(x, y)
    return Series(name, at, means, low=low, high=high, shade=shade)
