"""Whether latents that one latent splits into fire together: `stitch_cooccurrence`.

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
from trainer.runs.notes import Tell, as_warning
from trainer.runs.trained_sae import FoldedSae, load
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.dictionary import check_one_site
from trainer.stitching.max_cosine import Matches, max_cosine
from trainer.stitching.pair import (
    Choice,
    common_site,
    distinct_names,
    name_of,
    open_rows,
)

NAME = "stitch_cooccurrence"
MOST_PAIRS = 64  # pairs of one family that are looked at
RANDOM_FOR_EACH = 4  # random pairs for each pair of children
NEAREST = 16  # latents among which one of similar density is drawn
ENOUGH = 5.0  # rows expected together from which a ratio says something
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


def ratio_of(
    pairs: NDArray[np.int64], together: NDArray[np.int64], counts: Counts
) -> tuple[float, float]:
    """Return how often pairs fire together, over what independence has, and that.

    Args:
        pairs: int64 [p, 2].
        together: Rows on which each fires together, int64 [p].
        counts: How often latents fire.
    """
    densities = counts.fires[pairs].astype(np.float64) / max(1, counts.rows)
    expected = float(densities.prod(axis=1).sum()) * counts.rows
    ratio = float(together.sum()) / expected if expected > 0 else np.nan
    return ratio, expected


@checked(
    a=arguments.folder,
    b=arguments.folder,
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
    most = None if rows is None else arguments.count(rows)
    choice = Choice(site, arguments.path_or_none(store), split, most, device)
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
    names = distinct_names([name_of(sae) for sae in saes])
    facts: dict[str, Value] = {"threshold": threshold, "rows": counts.rows}
    return _table(families, counts, names, facts)


def _table(
    families: list[Family],
    counts: Counts,
    names: tuple[str, ...],
    facts: dict[str, Value],
) -> Table:
    ratios = []
    randoms = []
    expected = []
    start = 0
    for family in families:
        middle = start + len(family.pairs)
        end = middle + len(family.random)
        ratio, rows = ratio_of(family.pairs, counts.together[start:middle], counts)
        ratios.append(ratio)
        expected.append(rows)
        randoms.append(ratio_of(family.random, counts.together[middle:end], counts)[0])
        start = end
    relative = np.divide(ratios, np.where(np.array(randoms) > 0, randoms, np.nan))
    readings = [
        _reading(value, rows) for value, rows in zip(relative, expected, strict=True)
    ]
    density = [counts.fires[f.children].sum() / counts.rows for f in families]
    columns = (
        Column("parent", np.array([f.parent for f in families], dtype=np.int64)),
        Column("children", np.array([len(f.children) for f in families], np.int64)),
        Column("pairs", np.array([len(f.pairs) for f in families], np.int64)),
        Column("density", np.array(density), "sum of the children's densities"),
        Column("expected", np.array(expected), "expected together", "rows"),
        Column("ratio", np.array(ratios), "together / expected"),
        Column("random_ratio", np.array(randoms), "the same, random pairs"),
        Column("relative", relative, "ratio / that of random pairs"),
        Column("reading", readings),
        Column("latents", [_named(f.children) for f in families]),
    )
    for reading in READINGS:
        facts[reading] = readings.count(reading)
    text = (
        f"Latents of {names[0]} that are split in {names[1]}. Children that fire"
        " together less than half as often as random pairs of similar densities read as"
        " alternatives, more than twice as often as parts of one subspace."
    )
    return Table(NAME, "Do split latents fire together?", text, columns, facts)


def _reading(relative: float, expected: float) -> str:
    if np.isnan(relative) or expected < ENOUGH:
        return READINGS[3]
    if relative < 0.5:
        return READINGS[0]
    return READINGS[2] if relative > 2 else READINGS[1]


def _named(latents: NDArray[np.int64]) -> str:
    shown = " ".join(map(str, latents[:8]))
    return shown if len(latents) <= 8 else f"{shown} and {len(latents) - 8} more"


def plot_stitch_cooccurrence(table: Table) -> tuple[Drawing, ...]:
    """Draw the histogram of ratios, of children and of random pairs."""
    is_known = table["expected"] >= ENOUGH
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
