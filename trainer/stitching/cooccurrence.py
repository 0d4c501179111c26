"""Counts how often the latents that one splits into fire together.

A latent's children are those of a large SAE whose most similar latent it is, with a
cosine above a threshold. Children that never fire together are alternatives; those that
do span a subspace. The number of rows on which two children fire together is divided by
what independent latents of their densities would have, and held against random pairs of
similar densities, for latents of any SAE fire together more than chance has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.cosines import max_cosine
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.runs.run_data import name_of
from trainer.runs.trained_sae import FoldedSae, load
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.dictionary import check_one_site
from trainer.stitching.families import Family, families_of
from trainer.stitching.pair import (
    choice_of,
    common_site,
    distinct_names,
    open_rows,
)

NAME = "stitch_cooccurrence"
ENOUGH = 5  # rows with both from which a ratio says something
PAIRS_AT_ONCE = 4096
BINS = 24
READINGS = ("alternatives", "like random pairs", "together", "too few rows")


class Counts(NamedTuple):
    """How often latents fire, and how often pairs of them do together.

    Attributes:
        rows: Number of rows.
        fires: int64 [m].
        together: int64 [n_pairs].
    """

    rows: int
    fires: NDArray[np.int64]
    together: NDArray[np.int64]


@torch.no_grad()
def counted(sae: FoldedSae, rows: Iterable[Tensor], pairs: NDArray[np.int64]) -> Counts:
    """Count over rows [n, d] how often latents and pairs [n_pairs, 2] of them fire."""
    device = sae.W_dec.device
    first, second = torch.from_numpy(pairs).to(device).T
    fires = torch.zeros(len(sae.W_dec), dtype=torch.int64, device=device)
    together = torch.zeros(len(pairs), dtype=torch.int64, device=device)
    n_rows = 0
    size = max(1, (1 << 26) // len(sae.W_dec))
    for whole in rows:
        for x in whole.split(size):
            # By latent, so that a pair is two contiguous lines.
            is_active = (sae.encode(x) > 0).T.contiguous()
            fires += is_active.sum(dim=1)
            n_rows += len(x)
            for start in range(0, len(pairs), PAIRS_AT_ONCE):
                at = slice(start, start + PAIRS_AT_ONCE)
                both = is_active[first[at]] & is_active[second[at]]
                together[at] += both.sum(dim=1)
    return Counts(n_rows, fires.cpu().numpy(), together.cpu().numpy())


def expected_together(pairs: NDArray[np.int64], counts: Counts) -> float:
    """Return on how many rows pairs [p, 2] would fire together if independent."""
    densities = counts.fires[pairs] / max(1, counts.rows)
    return float(densities.prod(axis=1).sum()) * counts.rows


@checked(
    a=run_folder,
    b=run_folder,
    site=optional(arguments.text),
    threshold=cosine,
    seed=arguments.count_from_0,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
    rows=optional(arguments.count),
    device=arguments.device,
    tell=arguments.callback,
)
def compute_stitch_cooccurrence(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    device: str = "cpu",
    tell: Tell = as_warning,
) -> Table:
    """Measure how often children of one latent fire together.

    Args:
        a: The run of the small SAE, whose latents are split.
        b: The run of the large SAE, of the same site and store.
        site: The site; None for the only one they share.
        threshold: Cosine above which a latent is a child of its most similar one.
        seed: Of the random pairs.
        store: The store; None for the one that both were trained from.
        split: "held_out" or "train".
        rows: Rows at most; None for all of them.
        device: Where the SAEs run.
        tell: Is given what should be known though it is no error.

    Returns:
        A row for each latent of a with two children or more that fire.

    Raises:
        RunError: A run is no SAE of one site, or there are no rows.
    """
    choice = choice_of(site, store, split, rows, device)
    saes = [load(os.fspath(run), device=device) for run in (a, b)]
    site = common_site(saes, site)
    for sae in saes:
        check_one_site(sae, site)
    some = open_rows(saes, site, choice, tell)
    large = saes[1].fold(site)
    matches = max_cosine(saes[0].decoder, saes[1].decoder)
    no_pairs = np.zeros((0, 2), dtype=np.int64)
    fires = counted(large, some, no_pairs).fires
    families = families_of(matches, fires, threshold, seed)
    every = np.concatenate(
        [no_pairs, *(part for f in families for part in (f.pairs, f.random))]
    )
    counts = counted(large, some, every)
    names = distinct_names([name_of(sae.url, sae.record) for sae in saes])
    facts: dict[str, Value] = {"threshold": threshold, "rows": counts.rows}
    return _table(families, counts, names, facts)


class _Ratios(NamedTuple):
    """Ratios of firing together, of each family.

    Attributes:
        together: Rows on which its pairs fire together, int64 [n].
        expected: Those that independent latents would have, float64 [n].
        ratio: together / expected.
        random: The same ratio of random pairs.
        baseline: `random`; where too few rows say what that is, the ratio of the
            random pairs of all families.
    """

    together: NDArray[np.int64]
    expected: NDArray[np.float64]
    ratio: NDArray[np.float64]
    random: NDArray[np.float64]
    baseline: NDArray[np.float64]


def _ratios(families: list[Family], counts: Counts) -> _Ratios:
    n = len(families)
    together = np.zeros((n, 2), dtype=np.int64)
    expected = np.zeros((n, 2))
    start = 0
    for number, family in enumerate(families):
        for which, pairs in enumerate((family.pairs, family.random)):
            end = start + len(pairs)
            together[number, which] = counts.together[start:end].sum()
            expected[number, which] = expected_together(pairs, counts)
            start = end
    ratio = _divided(together, expected)
    pooled = _divided(together.sum(axis=0), expected.sum(axis=0))[1]
    is_known = together[:, 1] >= ENOUGH
    baseline = np.where(is_known, ratio[:, 1], pooled)
    return _Ratios(together[:, 0], expected[:, 0], ratio[:, 0], ratio[:, 1], baseline)


def _divided(
    values: NDArray[np.generic], by: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return quotients; NaN where there is nothing to divide by."""
    quotients = np.full(np.shape(values), np.nan)
    np.divide(values, by, out=quotients, where=by > 0)
    return quotients


def _table(
    families: list[Family],
    counts: Counts,
    names: tuple[str, ...],
    facts: dict[str, Value],
) -> Table:
    ratios = _ratios(families, counts)
    as_random = ratios.expected * ratios.baseline
    most = np.maximum(ratios.together, as_random)
    relative = _divided(ratios.together, as_random)
    readings = [_reading(*pair) for pair in zip(relative, most, strict=True)]
    density = [counts.fires[f.children].sum() / counts.rows for f in families]
    columns = (
        Column("parent", np.array([f.parent for f in families], np.int64)),
        Column("children", np.array([len(f.children) for f in families], np.int64)),
        Column("pairs", np.array([len(f.pairs) for f in families], np.int64)),
        Column("density", np.array(density), "children's densities"),
        Column("together", ratios.together, "fire together", "rows"),
        Column("expected", ratios.expected, "if independent", "rows"),
        Column("ratio", ratios.ratio, "together / independent"),
        Column("random_ratio", ratios.random, "the same, random pairs"),
        Column("relative", relative, "ratio / that of random pairs"),
        Column("reading", readings),
        Column("latents", [f.named for f in families]),
    )
    for reading in READINGS:
        facts[reading] = readings.count(reading)
    text = (
        f"Latents of {names[0]} that are split in {names[1]}. Children that fire"
        " together less than half as often as random pairs of similar densities read as"
        " alternatives, more than twice as often as parts of one subspace."
    )
    return Table(NAME, "Do split latents fire together?", text, columns, facts)


def _reading(relative: float, rows: float) -> str:
    """Return what a ratio says.

    Args:
        relative: The ratio of children over that of random pairs.
        rows: On how many rows they fire together or would if they were random pairs,
            whichever is more.
    """
    if np.isnan(relative) or rows < ENOUGH:
        return READINGS[3]
    if relative < 0.5:
        return READINGS[0]
    return READINGS[2] if relative > 2 else READINGS[1]


def plot_stitch_cooccurrence(table: Table) -> tuple[Drawing, ...]:
    """Draw the histogram of ratios, of children and of random pairs."""
    is_known = np.array([name != READINGS[3] for name in table["reading"]], bool)
    values = {
        "children": table["ratio"][is_known],
        "random pairs": table["random_ratio"][is_known],
    }
    logs = {
        # A ratio of 0 is shown at the left end.
        name: np.log10(np.clip(ratio[~np.isnan(ratio)], 1e-2, 1e2))
        for name, ratio in values.items()
    }
    edges = np.linspace(-2, 2, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    series = tuple(
        Series(
            name,
            centres,
            np.histogram(log, edges)[0],
            "bars" if number == 0 else "line",
            colour=number,
        )
        for number, (name, log) in enumerate(logs.items())
    )
    figure = Figure(
        f"{NAME}-histogram",
        Axis("log10 of firing together, relative to independent latents"),
        Axis("split latents", zero=True),
        series,
        rules=(Rule(0.0, "independent", across=False),),
    )
    return (figure,)
