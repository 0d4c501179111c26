"""Density of latents over training, from the sliding window that training counts in.

The histograms are in the journal (`StepRecord.density`); `docs/metrics.md` defines
density.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError
from actstore.figures.figure import Axis, Drawing, Figure, HeatMap, Series
from actstore.figures.table import Column, Table, Value
from actstore.format.storage import Storage
from schemas.records import RunRecord, StepRecord
from trainer.errors import RunError
from trainer.evaluation.metric_definitions import (
    DENSITY_BINS,
    DENSITY_BINS_PER_DECADE,
    LOWEST_LOG_DENSITY,
)
from trainer.runs import journal
from trainer.runs.run_files import read_json

NAME = "density_over_training"
WIDTH = 1 / DENSITY_BINS_PER_DECADE
# The lower edge of the bin of the latents that never fired: they count as 1e-10.
NEVER_PLACE = -10.0


def compute_density_over_training(runs: Sequence[str]) -> Table:
    """Return how many latents fired how often in each window of a run's training.

    Args:
        runs: The runs' folders; they need not have been evaluated.

    Returns:
        A row for each run, logged window and bin with latents in it. `log10_density` is
        the lower end of the bin, which is a quarter wide; -10 is that of latents that
        did not fire.

    Raises:
        RunError: There is no such run, or its training counted no densities.
    """
    if not runs:
        raise RunError("density: wanted one run or more, got none")
    rows: list[tuple[int, str, int, int, int, int, float, int]] = []
    facts: dict[str, Value] = {"runs": len(runs)}
    for number, run in enumerate(runs):
        record, steps = _read(run)
        name = record.name or run.rstrip("/").rsplit("/", 1)[-1]
        for step in steps:
            assert step.density is not None, "those without one were left out"
            window = step.density
            for place, count in _filled_bins(window.counts):
                about = (number, name, record.seed, step.step, step.rows)
                rows.append((*about, window.rows, place, count))
        last = steps[-1].density
        assert last is not None, "those without one were left out"
        silent = dict(_filled_bins(last.counts)).get(NEVER_PLACE, 0)
        facts[f"silent in the last window ({number}: {name})"] = silent
    columns = list(zip(*rows, strict=True))
    return Table(
        name=NAME,
        title="Density over training",
        text=(
            "How many latents fired on which share of the last rows, as training went"
            " on. The window slides; its rows are given. Latents of density 1e-10 did"
            " not fire in it."
        ),
        columns=(
            Column("number", np.array(columns[0]), "run number"),
            Column("run", list(columns[1])),
            Column("seed", np.array(columns[2])),
            Column("step", np.array(columns[3]), "step", "updates"),
            Column("rows", np.array(columns[4]), "rows seen", "rows"),
            Column("window", np.array(columns[5]), "rows of the window", "rows"),
            Column("log10_density", np.array(columns[6]), "log10 density, from"),
            Column("latents", np.array(columns[7]), "latents"),
        ),
        facts=facts,
    )


def plot_density_over_training(table: Table) -> tuple[Drawing, ...]:
    """Return the last windows' histograms, and of one run its whole course as a map."""
    last = _last_windows(table)
    if len(np.unique(table["number"])) > 1:
        return (last,)
    return (_heat_map(table), last)


def _heat_map(table: Table) -> HeatMap:
    """Return log10 density over rows seen; the colour is log10 of latents."""
    seen = np.unique(table["rows"])
    places = _places(table)
    counts = np.full((len(places), len(seen)), np.nan)
    x = np.searchsorted(seen, table["rows"])
    y = np.searchsorted(places, table["log10_density"])
    counts[y, x] = np.log10(table["latents"])
    names = [
        "never" if place == NEVER_PLACE else f"{place + WIDTH / 2:.3g}"
        for place in places
    ]
    return HeatMap(
        name=f"{NAME}-map",
        x=Axis("rows seen (rows)", categories=tuple(f"{rows:,}" for rows in seen)),
        y=Axis("log10 density", categories=tuple(names)),
        values=counts,
        label="log10 of latents",
        title=f"Density over training: {table['run'][0]}",
    )


def _last_windows(table: Table) -> Figure:
    """Return the histogram of each run's last window, without silent latents."""
    series = []
    numbers = np.unique(table["number"])
    for number in numbers:
        of_run = table["number"] == number
        is_last = table["rows"] == table["rows"][of_run].max()
        fires = table["log10_density"] != NEVER_PLACE
        chosen = of_run & is_last & fires
        first = int(np.flatnonzero(of_run)[0])
        places = _filled(table["log10_density"][chosen])
        counts = np.zeros(len(places), dtype=np.int64)
        counts[np.searchsorted(places, table["log10_density"][chosen])] = table[
            "latents"
        ][chosen]
        series.append(
            Series(
                name=table["run"][first],
                x=places + WIDTH / 2,
                y=counts,
                mark="line",
                run=int(number) if len(numbers) > 1 else None,
            )
        )
    return Figure(
        name=f"{NAME}-last",
        x=Axis("log10 density"),
        y=Axis("latents", zero=True),
        series=tuple(series),
        title="Density in the last window",
    )


def _places(table: Table) -> NDArray[np.float64]:
    """Return the bins that the map shows: never, then all from the rarest on."""
    found = np.unique(table["log10_density"])
    fires = _filled(found[found != NEVER_PLACE])
    return np.concatenate([found[found == NEVER_PLACE], fires])


def _filled(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bins from the first of some to the last, [n] to [at least n]."""
    if not len(places):
        return places
    first, last = places.min(), places.max()
    n = round((last - first) / WIDTH) + 1
    filled: NDArray[np.float64] = first + WIDTH * np.arange(n)
    return filled


def _filled_bins(counts: Sequence[int]) -> list[tuple[float, int]]:
    """Return lower end and latents of the bins that have any."""
    return [
        (LOWEST_LOG_DENSITY + number * WIDTH, count)
        for number, count in enumerate(counts)
        if count
    ]


def _read(run: str) -> tuple[RunRecord, list[StepRecord]]:
    """Return a run's record, and its journal's records with a histogram."""
    storage = Storage(run)
    try:
        record = read_json(storage, "sae.json", RunRecord)
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError as error:
        raise RunError(f"{run}: wanted a finished run ({error})") from None
    steps = [step for step in journal.read(storage) if step.density is not None]
    if not steps:
        raise RunError(
            f"{run}: its journal has no densities: it was imported, or trained by an"
            " earlier version; train it again"
        )
    for step in steps:
        assert step.density is not None, "those without one were left out"
        if len(step.density.counts) != DENSITY_BINS:
            raise RunError(
                f"{run}/{journal.KEY}: the densities of step {step.step} have"
                f" {len(step.density.counts)} bins, wanted {DENSITY_BINS}; it was"
                " changed or badly written"
            )
    return record, steps
