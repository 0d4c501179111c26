"""MMCS of runs: on toy data against the true features, else against a larger run.

Definitions: docs/methods.md, section 4. The floor of random directions is given with
each figure, since MMCS of chance grows with the dictionary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Figure, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.decoder_directions import decoder_of
from trainer.analysis.known_truth import TRUE_FEATURES, next_larger, truth_of
from trainer.analysis.mmcs import NOT_KNOWN, Mmcs, mmcs
from trainer.analysis.random_directions import random_floor
from trainer.analysis.seed_groups import group_runs, sparsity_setting
from trainer.analysis.statistics_of_seeds import mean_interval, shown_interval
from trainer.errors import RunError
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_data import name_of
from trainer.runs.trained_sae import TrainedSae, load

FLOOR = "random directions"
NO_LARGER = "no larger run"


class Comparison(NamedTuple):
    """One run against what it is held against.

    Attributes:
        against: The true features, or the name of a larger run.
        n_features: How many directions that has.
        mmcs: How well they are found.
        floor: The MMCS of random directions in place of the dictionary.
    """

    against: str
    n_features: int
    mmcs: Mmcs
    floor: float


@checked(
    runs=run_folders,
    truth=optional(arguments.folder),
    seed=arguments.count_from_0,
)
def compute_mmcs(
    runs: Sequence[str | os.PathLike[str]],
    *,
    truth: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Table:
    """Return the MMCS of runs, a row for each.

    Args:
        runs: Folders of trained runs.
        truth: A store of toy data whose true features to use; None for those of each
            run's own store and, where these are not known, for the next larger run of
            the same sites, kind, sparsity and seed.
        seed: Seed of the random directions of the floor.

    Raises:
        RunError: A run is none, or its decoder has no single direction for a latent.
    """
    saes = [load(os.fspath(run)) for run in runs]
    comparisons = compare(saes, arguments.path_or_none(truth), seed)
    _check_any(comparisons)
    names = [name_of(sae.url, sae.record) for sae in saes]
    found = [one.mmcs for one in comparisons]
    sparsities = [sparsity_setting(sae) for sae in saes]
    columns = (
        Column("run", names, "run"),
        Column("against", [one.against for one in comparisons]),
        Column("mmcs", np.array([one.mmcs for one in found]), "MMCS"),
        Column("floor", np.array([one.floor for one in comparisons]), "random floor"),
        Column("found", np.array([one.found for one in found]), "share above 0.9"),
        Column("uniqueness", np.array([one.uniqueness for one in found])),
        Column("latents", np.array([sae.n_latents for sae in saes])),
        Column("sparsity", [str(one) for one in sparsities]),
        Column("seed", np.array([sae.record.seed for sae in saes])),
        Column("features", np.array([one.n_features for one in comparisons])),
        Column(
            "without_direction",
            np.array([one.without_direction for one in found]),
            "latents of norm 0",
        ),
    )
    return Table(
        "mmcs",
        "Features found by each dictionary (MMCS)",
        "The mean, over features, of the largest cosine with the dictionary: 1 where"
        " every feature is a decoder direction. The random floor is what a dictionary"
        " of random directions of the same size has; only what is above it was learnt.",
        columns,
        _facts(saes, found),
    )


def compare(
    saes: Sequence[TrainedSae], truth: str | None, seed: int
) -> list[Comparison]:
    """Return each run's MMCS, against the truth where known, else the next larger run.

    Args:
        saes: The runs.
        truth: A store of toy data; None for each run's own.
        seed: Seed of the floor.
    """
    larger = next_larger(saes)
    floors: dict[tuple[int, int], float] = {}
    comparisons = []
    for sae, above in zip(saes, larger, strict=True):
        decoder = decoder_of(sae)
        known = truth_of(sae.url, sae.record, truth)
        of_what = sae if above is None else saes[above]
        shape = (of_what.n_latents, decoder.shape[1])
        if known is not None:
            shape = (sae.n_latents, decoder.shape[1])
        if shape not in floors:
            floors[shape] = random_floor(*shape, seed)
        floor = floors[shape]
        if known is not None:
            found = mmcs(known.directions, decoder)
            n = len(known.directions)
            comparisons.append(Comparison(TRUE_FEATURES, n, found, floor))
        elif above is None:
            comparisons.append(Comparison(NO_LARGER, 0, NOT_KNOWN, math.nan))
        else:
            # The smaller one's latents are what the larger one should have found.
            found = mmcs(decoder, decoder_of(of_what))
            name = name_of(of_what.url, of_what.record)
            comparisons.append(Comparison(name, len(decoder), found, floor))
    return comparisons


def plot_mmcs(table: Table) -> tuple[Figure, ...]:
    """Return the figure of `compute_mmcs`: MMCS by dictionary size and sparsity."""
    sizes = np.asarray(table["latents"], float)
    values = np.asarray(table["mmcs"])
    floors = np.asarray(table["floor"])
    labels = sorted(set(table["sparsity"]))
    series = []
    for i, label in enumerate(labels):
        mine = np.array([one == label for one in table["sparsity"]])
        order = np.flatnonzero(mine)[np.argsort(sizes[mine], kind="stable")]
        names = [f"{table['run'][j]} against {table['against'][j]}" for j in order]
        shade = i / max(1, len(labels) - 1)
        one = Series(
            label, sizes[order], values[order], "points", labels=names, shade=shade
        )
        series.append(one)
    floor_series, rules = floor_of(sizes, floors)
    return (
        Figure(
            "mmcs",
            Axis("latents", log=True),
            Axis("MMCS", zero=True, limits=(0, 1)),
            (*floor_series, *series),
            "Features found, by dictionary size",
            rules,
        ),
    )


def floor_of(
    x: np.ndarray, floors: np.ndarray
) -> tuple[tuple[Series, ...], tuple[Rule, ...]]:
    """Return the random floor as it is drawn: a rule for each value there is.

    Where it changes along the axis a dashed line joins its values, so that it is seen
    at each place.

    Args:
        x: Places [n].
        floors: The floor at each [n]; NaN where it is not known.
    """
    known = ~np.isnan(floors)
    distinct = np.unique(floors[known])
    if not len(distinct):
        return (), ()
    if len(distinct) == 1:
        return (), (Rule(float(distinct[0]), FLOOR),)
    places, first = np.unique(x[known], return_index=True)
    line = Series(FLOOR, places, floors[known][first], "line", dashed=True)
    lowest = Rule(float(distinct[0]), f"{FLOOR}, smallest")
    highest = Rule(float(distinct[-1]), f"{FLOOR}, largest")
    return (line,), (lowest, highest)


def _check_any(comparisons: Sequence[Comparison]) -> None:
    if all(one.against == NO_LARGER for one in comparisons):
        raise RunError(
            "wanted runs on toy data, whose store has true features (`actstore toy`),"
            " or at least two runs of the same sites, kind, sparsity and seed, but of"
            " different sizes; there is nothing to compare these with"
        )


def _facts(saes: Sequence[TrainedSae], found: Sequence[Mmcs]) -> dict[str, Value]:
    """Return the mean over seeds of the runs that are the same but for it."""
    facts: dict[str, Value] = {"seeds": len({sae.record.seed for sae in saes})}
    value_of = {sae.url: one.mmcs for sae, one in zip(saes, found, strict=True)}
    for group in group_runs(saes):
        if len(group.runs) > 1:
            values = [value_of[sae.url] for sae in group.runs]
            facts[f"MMCS, {group.name}"] = shown_interval(mean_interval(values))
    return facts
