"""Runs that resample dead latents beside runs that do not (docs/methods.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actstore.figures.figure import Figure
from actstore.figures.table import Column, Table, Value
from trainer.analysis.curves import (
    LINES,
    compute_curves,
    curve_figure,
    resampling_of,
)
from trainer.analysis.seed_groups import Group, group_runs
from trainer.analysis.statistics_of_seeds import mean_interval, shown_interval
from trainer.errors import RunError
from trainer.runs.run_data import RunData

SETTINGS = (
    "resample",
    "resample.every",
    "resample.times",
    "resample.silent_rows",
    "resample.candidates",
    "resample.encoder_scale",
)
ENDS = {"dead": "dead latents", "fvu": "FVU", "l0": "L0"}


def differ_in_resampling(runs: Sequence[RunData]) -> bool:
    """Return whether some runs resample and others do not."""
    return {"on", "off"} <= {resampling_of(run) for run in runs}


def compute_resampling(runs: Sequence[RunData]) -> Table:
    """Return the journals of runs with and without resampling, with figures at the end.

    Runs are compared that are the same but for resampling and the seed. Columns: those
    of `curves`, and `setting`, the name of what is the same. Facts: dead latents, FVU
    and L0 on held-out rows, on and off, and the differences paired by seed.

    Raises:
        RunError: There is no run, or resampling is not on for some and off for others.
    """
    groups = [
        group
        for group in group_runs(runs, but_for=SETTINGS)
        if differ_in_resampling(group.runs)
    ]
    if not groups:
        raise RunError(
            "wanted runs that are the same but for `resample`, which some have and"
            " others have not; none of these are; train one with --resample.every"
        )
    chosen = [run for group in groups for run in group.runs]
    table = compute_curves(chosen)
    setting = {run.name: group.name for group in groups for run in group.runs}
    facts: dict[str, Value] = {}
    for group in groups:
        facts |= _facts(group, group.name if len(groups) > 1 else "")
    names = Column("setting", [setting[run] for run in table["run"]])
    return Table(
        name="resampling",
        title="Resampling of dead latents",
        text=(
            "Each row is a line of a run's journal; runs with resampling give dead"
            " latents new directions now and then. The figures beside the table are"
            " those on held-out rows at the end; differences are with minus without."
        ),
        columns=(*table.columns, names),
        facts=facts,
    )


def plot_resampling(table: Table) -> tuple[Figure, ...]:
    """Draw dead latents, FVU and L0 over training, with and without resampling."""
    fields = [field for field in LINES if field.name in ENDS]
    return tuple(curve_figure(table, field, "resample") for field in fields)


def _facts(group: Group, name: str) -> dict[str, Value]:
    """Return the figures at the end, on and off, and their differences."""
    after = f", {name}" if name else ""
    facts: dict[str, Value] = {}
    for figure, label in ENDS.items():
        by_seed = {state: _by_seed(group, state, figure) for state in ("on", "off")}
        for state, found in by_seed.items():
            interval = mean_interval(list(found.values()))
            facts[f"{label}, {state}{after}"] = shown_interval(interval)
        both = by_seed["on"].keys() & by_seed["off"].keys()
        differences = [by_seed["on"][seed] - by_seed["off"][seed] for seed in both]
        facts[f"{label}, on minus off{after}"] = shown_interval(
            mean_interval(differences)
        )
    return facts


def _by_seed(group: Group, state: str, figure: str) -> dict[int, float]:
    """Return a figure of the runs in a state, the mean over those of one seed."""
    found: dict[int, list[float]] = {}
    for run in group.runs:
        if resampling_of(run) == state:
            evaluation = run.evaluation
            value = (
                evaluation.dead
                if figure == "dead"
                else getattr(evaluation.pooled, figure)
            )
            found.setdefault(run.record.seed, []).append(float(value))
    return {seed: float(np.mean(values)) for seed, values in found.items()}
