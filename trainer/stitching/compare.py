"""Which latents of a large SAE a small one has: the table `stitch_compare`."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, Mark, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.cosines import Matches, mutual_max_cosine
from trainer.analysis.random_directions import random_floor
from trainer.runs.run_arguments import run_folder
from trainer.stitching.checks import THRESHOLD, cosine
from trainer.stitching.decoders import Decoder, read_decoders

NAME = "stitch_compare"
BINS = 50  # bars of the histogram
MOST_POINTS = 2000  # points of a scatter


class _Part(NamedTuple):
    """One direction: latents `of` one SAE, matched `against` another."""

    of: Decoder
    against: Decoder
    matches: Matches
    floor: float


@checked(
    a=run_folder,
    b=run_folder,
    site=optional(arguments.text),
    threshold=cosine,
    seed=arguments.count_from_0,
)
def compute_stitch_compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    site: str | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Table:
    """Match each latent of two SAEs with the most similar latent of the other.

    Similar means the cosine of decoder directions (docs/methods.md, section 3). No rows
    are needed, and any kind of SAE of one site will do. Densities are those of the
    runs' evaluations, NaN where a run has none.

    Args:
        a: The run of the small SAE.
        b: The run of the large SAE, of the same site; or of another seed.
        site: The site; None for the only one they share.
        threshold: Cosine above which a latent is a reconstruction latent.
        seed: Of the random directions of the floor.

    Returns:
        A row for each latent of b, then one for each of a.

    Raises:
        RunError: They are no finished runs, or not of one site and width.
    """
    small, large = read_decoders([os.fspath(a), os.fspath(b)], site)
    of_large, of_small = mutual_max_cosine(small.rows, large.rows)
    parts = [
        _part(large, small, of_large, seed),
        _part(small, large, of_small, seed),
    ]
    return _table(parts, threshold)


def _part(of: Decoder, against: Decoder, matches: Matches, seed: int) -> _Part:
    floor = random_floor(len(against.rows), against.rows.shape[1], seed)
    return _Part(of, against, matches, floor)


def classes(cosines: NDArray[np.floating], threshold: float) -> list[str]:
    """Return "novel", "reconstruction" or "no direction" for maximum cosines [m]."""
    names = np.where(cosines > threshold, "reconstruction", "novel")
    return list(np.where(np.isnan(cosines), "no direction", names).tolist())


def _table(parts: list[_Part], threshold: float) -> Table:
    sizes = [len(part.of.rows) for part in parts]
    cosines = np.concatenate([part.matches.cosine.numpy() for part in parts])
    facts: dict[str, Value] = {
        "threshold": threshold,
        "small SAE": parts[1].of.name,
        "large SAE": parts[0].of.name,
    }
    for part in parts:
        facts |= _facts(part, threshold)
    columns = (
        Column("of", _repeated([part.of.name for part in parts], sizes), "SAE"),
        Column("latent", np.concatenate([np.arange(size) for size in sizes])),
        Column(
            "match", _joined([part.matches.latent for part in parts]), "most similar"
        ),
        Column("max_cosine", cosines, "cosine"),
        Column("class", classes(cosines, threshold)),
        Column("density", np.concatenate([part.of.density for part in parts])),
        Column(
            "match_density",
            np.concatenate([_density_of_match(part) for part in parts]),
            "density of the most similar",
        ),
    )
    text = (
        "For each latent the largest cosine of its decoder direction with any of the"
        " other SAE. Those above the threshold reconstruct what the other SAE has"
        " already; the others are novel. A random dictionary reaches the floor."
    )
    title = f"Latents of {parts[0].of.name} and {parts[1].of.name}"
    return Table(NAME, title, text, columns, facts)


def _facts(part: _Part, threshold: float) -> dict[str, Value]:
    cosines = part.matches.cosine.numpy()
    known = cosines[~np.isnan(cosines)]
    about = f"{part.of.name} in {part.against.name}"
    n_novel = int((known <= threshold).sum())
    return {
        f"{about}: novel": n_novel,
        f"{about}: reconstruction": len(known) - n_novel,
        f"{about}: no direction": part.matches.without_direction,
        f"{about}: share novel": n_novel / len(known) if len(known) else np.nan,
        f"{about}: mean": float(known.mean()) if len(known) else np.nan,
        f"{about}: random floor": part.floor,
    }


def _density_of_match(part: _Part) -> NDArray[np.float64]:
    latent = part.matches.latent.numpy()
    if not len(part.against.density):
        return np.full(len(latent), np.nan)
    return np.where(latent < 0, np.nan, part.against.density[latent])


def _joined(parts: list[Tensor]) -> NDArray[np.generic]:
    return np.concatenate([part.numpy() for part in parts])


def _repeated(names: list[str], sizes: list[int]) -> list[str]:
    return [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]


def plot_stitch_compare(table: Table) -> tuple[Drawing, ...]:
    """Draw the histogram of maximum cosines, and densities of latents and matches."""
    names = list(dict.fromkeys(table["of"]))
    of = np.array(table["of"])
    edges = _edges(table["max_cosine"])
    centres = (edges[:-1] + edges[1:]) / 2
    series = []
    for number, name in enumerate(names):
        cosines = table["max_cosine"][of == name]
        counts, _ = np.histogram(cosines[~np.isnan(cosines)], edges)
        mark: Mark = "bars" if number == 0 else "line"
        series.append(Series(name, centres, counts, mark, colour=number))
    rules = [Rule(float(table.facts["threshold"]), "threshold", across=False)]
    rules += [
        Rule(float(value), f"random, {fact.partition(':')[0]}", across=False)
        for fact, value in table.facts.items()
        if fact.endswith(": random floor")
    ]
    histogram = Figure(
        f"{NAME}-histogram",
        Axis("largest cosine with a latent of the other SAE"),
        Axis("latents", zero=True),
        tuple(series),
        rules=tuple(rules),
    )
    return (histogram, *_densities(table, names, of))


def _edges(cosines: NDArray[np.floating]) -> NDArray[np.float64]:
    known = cosines[~np.isnan(cosines)]
    low = min(0.0, float(known.min())) if len(known) else 0.0
    return np.linspace(low, 1.0, BINS + 1)


def _densities(
    table: Table, names: list[str], of: NDArray[np.str_]
) -> tuple[Drawing, ...]:
    """Return the scatter of densities of reconstruction latents; none if unknown."""
    is_shown = np.array([name == "reconstruction" for name in table["class"]])
    is_shown &= (table["density"] > 0) & (table["match_density"] > 0)
    series = []
    for number, name in enumerate(names):
        at = np.flatnonzero(is_shown & (of == name))
        at = at[:: max(1, -(-len(at) // MOST_POINTS))]
        if len(at):
            labels = [f"latent {latent}" for latent in table["latent"][at]]
            x = table["match_density"][at]
            y = table["density"][at]
            series.append(Series(name, x, y, "points", labels=labels, colour=number))
    if not series:
        return ()
    figure = Figure(
        f"{NAME}-density",
        Axis("density of the most similar latent", log=True),
        Axis("density of the latent", log=True),
        tuple(series),
    )
    return (figure,)
