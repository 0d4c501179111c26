"""How alike SAEs of several sizes and seeds are: the table `stitch_pairs`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, HeatMap, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.cosines import max_cosine
from trainer.analysis.random_directions import random_floor
from trainer.errors import RunError
from trainer.runs.run_arguments import run_folders
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.decoders import Decoder, read_decoders

NAME = "stitch_pairs"
ORDERS = ("larger in smaller", "same size", "smaller in larger")


@checked(
    runs=run_folders,
    site=optional(arguments.text),
    threshold=cosine,
    seed=arguments.count_from_0,
)
def compute_stitch_pairs(
    runs: Sequence[str | os.PathLike[str]],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Table:
    """Match the latents of each SAE with those of each other one.

    With several seeds of each size it says whether a larger SAE has more that is novel
    than another seed has by chance.

    Args:
        runs: The runs, of one site.
        site: The site; None for the only one they share.
        threshold: Cosine above which a latent is a reconstruction latent.
        seed: Of the random directions of the floor.

    Returns:
        A row for each ordered pair of runs.

    Raises:
        RunError: They are no finished runs, or not of one site and width.
    """
    urls = arguments.folders(runs)
    if len(urls) < 2:
        raise RunError(f"wanted at least two runs to compare, got {len(urls)}")
    decoders = read_decoders(urls, site)
    d = decoders[0].rows.shape[1]
    sizes = {len(decoder.rows) for decoder in decoders}
    floors = {size: random_floor(size, d, seed) for size in sorted(sizes)}
    pairs = [(one, other) for one in decoders for other in decoders if one is not other]
    cosines = [
        max_cosine(other.rows, one.rows).cosine.double().numpy() for one, other in pairs
    ]
    return _table(pairs, cosines, floors, threshold)


def _table(
    pairs: list[tuple[Decoder, Decoder]],
    cosines: list[NDArray[np.float64]],
    floors: dict[int, float],
    threshold: float,
) -> Table:
    """Return the table of ordered pairs, with the largest cosines [m] of each."""
    known = [values[~np.isnan(values)] for values in cosines]
    n_novel = np.array([int((values <= threshold).sum()) for values in known])
    n_known = np.array([len(values) for values in known])
    share = np.divide(
        n_novel, n_known, out=np.full(len(pairs), np.nan), where=n_known > 0
    )
    means = [float(values.mean()) if len(values) else np.nan for values in known]
    orders = [_order(one, other) for one, other in pairs]
    columns = (
        Column("of", [one.name for one, _ in pairs], "latents of"),
        Column("against", [other.name for _, other in pairs], "matched with"),
        Column("n_of", np.array([len(one.rows) for one, _ in pairs]), "latents"),
        Column("n_against", np.array([len(o.rows) for _, o in pairs]), "of the other"),
        Column("order", orders),
        Column("novel", n_novel, "novel latents"),
        Column("share_novel", share, "share novel"),
        Column("mean_cosine", np.array(means), "mean largest cosine"),
        Column(
            "floor", np.array([floors[len(o.rows)] for _, o in pairs]), "random floor"
        ),
    )
    facts: dict[str, Value] = {"threshold": threshold, "pairs": len(pairs)}
    for order in ORDERS:
        here = share[np.array(orders) == order]
        if len(here):
            facts[f"{order}: mean share novel"] = float(np.nanmean(here))
            facts[f"{order}: least"] = float(np.nanmin(here))
            facts[f"{order}: most"] = float(np.nanmax(here))
    text = (
        "The share of an SAE's latents that another one has nothing similar to. SAEs of"
        " one size with other seeds say how much of it is chance."
    )
    return Table(NAME, "Novel latents, two by two", text, columns, facts)


def _order(one: Decoder, other: Decoder) -> str:
    if len(one.rows) == len(other.rows):
        return ORDERS[1]
    return ORDERS[0] if len(one.rows) > len(other.rows) else ORDERS[2]


def plot_stitch_pairs(table: Table) -> tuple[Drawing, ...]:
    """Draw the shares as a heat map, and against how much larger the SAE is."""
    names = tuple(dict.fromkeys(table["of"]))
    values = np.full((len(names), len(names)), np.nan)
    for of, against, share in zip(
        table["of"], table["against"], table["share_novel"], strict=True
    ):
        values[names.index(of), names.index(against)] = share
    map_of_pairs = HeatMap(
        f"{NAME}-map",
        Axis("matched with", categories=names),
        Axis("latents of", categories=names),
        values,
        "share novel",
        limits=(0.0, 1.0),
    )
    labels = [
        f"{of} in {against}"
        for of, against in zip(table["of"], table["against"], strict=True)
    ]
    by_size = Figure(
        f"{NAME}-sizes",
        Axis("size, relative to that of the other", log=True),
        Axis("share novel", zero=True),
        (
            Series(
                "pairs of runs",
                table["n_of"] / table["n_against"],
                table["share_novel"],
                "points",
                labels=labels,
            ),
        ),
    )
    return (map_of_pairs, by_size)
