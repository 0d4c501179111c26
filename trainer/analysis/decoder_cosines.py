"""Cosines between the directions of one dictionary (docs/methods.md, section 2).

Of all pairs a sample is looked at, since a dictionary of 98,304 latents has 4.8 billion
of them; of the pillars, the directions of largest norm, every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.table import Table
from trainer.analysis.cosines import known_directions
from trainer.analysis.decoder_directions import Directions, directions_of
from trainer.analysis.run_columns import (
    Field,
    columns_of,
    distinct,
    looks,
    run_values,
    series_of,
    where,
)
from trainer.analysis.statistics_of_seeds import means_at
from trainer.runs.run_data import RunData

PAIRS = 1_000_000  # pairs that are sampled of each dictionary
PILLARS = 100  # directions of largest norm
BLOCK = 1 << 24  # numbers of the directions of a block of pairs
EDGES: NDArray[np.float64] = np.linspace(-1, 1, 101)
SAMPLED = "sampled"
OF_PILLARS = "pillars"
_FIELDS = (
    Field("run"),
    Field("group", "same but for the seed"),
    Field("kind"),
    Field("seed"),
    Field("dictionary"),
    Field("of", "which pairs"),
    Field("cosine"),
    Field("pairs"),
    Field("share", "share of the pairs"),
)


def compute_decoder_cosines(
    runs: Sequence[RunData],
    *,
    n_pairs: int = PAIRS,
    seed: int = 0,
    alive_only: bool = False,
    device: str = "cpu",
) -> Table:
    """Return how many pairs of directions have which cosine, sampled and of pillars.

    Columns: `run`, `group`, `kind`, `seed`, `dictionary`, `of` ("sampled", or
    "pillars": all pairs among the 100 directions of largest norm), `cosine` (the middle
    of a bin 0.02 wide), `pairs`, `share`. Cosines are the same in all units.

    Args:
        runs: The runs.
        n_pairs: Pairs sampled of each dictionary.
        seed: The seed of the sample.
        alive_only: Leave out latents that never fired on the rows evaluated.
        device: Where cosines are computed.

    Raises:
        RunError: There is no run, or a decoder is not finite.
    """
    about = run_values(runs, over_layers=True)
    rows: list[list[Any]] = []
    without = 0
    for run in runs:
        every = directions_of(run, alive_only=alive_only, device=device)
        for number, dictionary in enumerate(every):
            unit = known_directions(dictionary.rows)
            without += len(dictionary.rows) - len(unit)
            sampled = sampled_cosines(unit, n_pairs, (seed, number))
            pillars = cosines_among(dictionary, pillars_of(dictionary))
            for of, cosines in ((SAMPLED, sampled), (OF_PILLARS, pillars)):
                rows += _rows(about[run.url], dictionary.name, of, cosines)
    return Table(
        name="decoder_cosines",
        title="Cosines between decoder directions",
        text=(
            "How many pairs of directions of one dictionary have which cosine, among"
            f" {n_pairs:,} pairs drawn at random and among all pairs of the"
            f" {PILLARS} directions of largest norm (pillars). Pairs near 1 write one"
            " direction twice."
        ),
        columns=tuple(columns_of(_FIELDS, rows)),
        facts={
            "latents": "alive" if alive_only else "all",
            "pairs sampled": n_pairs,
            "seed of the sample": seed,
            "latents of norm 0, left out": without,
        },
    )


def plot_decoder_cosines(table: Table) -> tuple[Figure, ...]:
    """Draw the histogram of sampled pairs, on a logarithmic axis, and of pillars."""
    return (_figure(table, SAMPLED), _figure(table, OF_PILLARS))


def sampled_cosines(
    unit: Tensor, n_pairs: int, seed: Sequence[int]
) -> NDArray[np.float32]:
    """Return cosines of pairs drawn at random, with replacement, [n_pairs].

    Args:
        unit: Directions of norm 1, [m, d].
        n_pairs: How many pairs.
        seed: The seed.

    Returns:
        The cosines; none where there are not two directions.
    """
    m = len(unit)
    if m < 2:
        return np.empty(0, np.float32)
    rng = np.random.default_rng(np.random.SeedSequence(list(seed)))
    first = rng.integers(0, m, n_pairs)
    # Another latent than the first: 1 to m - 1 further on.
    second = (first + rng.integers(1, m, n_pairs)) % m
    size = max(1, BLOCK // unit.shape[1])
    cosines = np.empty(n_pairs, np.float32)
    for start in range(0, n_pairs, size):
        part = slice(start, start + size)
        a = unit[torch.from_numpy(first[part]).to(unit.device)]
        b = unit[torch.from_numpy(second[part]).to(unit.device)]
        cosines[part] = (a * b).sum(dim=1).cpu().numpy()
    return cosines


def pillars_of(dictionary: Directions) -> Tensor:
    """Return which rows have the largest norms, at most 100 of norms above 0, int64."""
    norms = dictionary.rows.norm(dim=1)
    n = min(PILLARS, int((norms > 0).sum()))
    order: Tensor = norms.argsort(descending=True, stable=True)
    return order[:n]


def cosines_among(dictionary: Directions, chosen: Tensor) -> NDArray[np.float32]:
    """Return the cosines of all pairs of some rows, [n (n - 1) / 2]."""
    unit = known_directions(dictionary.rows[chosen])
    n = len(unit)
    above = torch.triu_indices(n, n, offset=1)
    cosines: NDArray[np.float32] = (unit @ unit.T).cpu()[above[0], above[1]].numpy()
    return cosines


def _rows(
    about: Sequence[Any], name: str, of: str, cosines: NDArray[np.float32]
) -> list[list[Any]]:
    run, group, _, kind, seed, *_ = about
    # Rounding leaves some beyond 1.
    counts, _ = np.histogram(np.clip(cosines, -1, 1), EDGES)
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    rows: list[list[Any]] = []
    for centre, count in zip(centres, counts, strict=True):
        share = count / max(1, len(cosines))
        figures = (float(centre), int(count), float(share))
        rows.append([run, group, kind, seed, name, of, *figures])
    return rows


def _figure(table: Table, of: str) -> Figure:
    groups = distinct(table["group"])
    colours = looks(groups)
    series: list[Series] = []
    for group in groups:
        rows = where(table, group=group, of=of)
        found = means_at(table["cosine"][rows], table["share"][rows])
        look = colours[group]
        series.append(series_of(group, found.at, found.mean, look, mark="line"))
    of_pillars = of == OF_PILLARS
    whose = "pillars" if of_pillars else "pairs drawn at random"
    return Figure(
        name=f"{table.name}-{of}",
        x=Axis("cosine"),
        # A few pairs near 1 among a million show on a logarithmic axis only.
        y=Axis("share of the pairs", log=not of_pillars, zero=of_pillars),
        series=tuple(series),
        title=f"Cosines between decoder directions, {whose}",
    )
