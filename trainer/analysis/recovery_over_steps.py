"""MMCS against the true features while training goes on, by how dictionaries began.

Third document: initialised from data MMCS is said to start higher, and to end at the
same (docs/methods.md, section 4). It is measured at the checkpoints that a run kept:
train with `keep` and `checkpoint_every` set for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import ObjectError
from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.table import Column, Table, Value
from actstore.format.storage import Storage
from schemas.train import TrainSpec
from trainer.analysis.compare_mmcs import floor_of
from trainer.analysis.decoder_directions import decoder_of
from trainer.analysis.known_truth import Truth, truth_of
from trainer.analysis.mmcs import Mmcs, mmcs
from trainer.analysis.random_directions import random_floor
from trainer.analysis.seed_groups import group_runs
from trainer.analysis.statistics_of_seeds import mean_interval, means_at, shown_interval
from trainer.errors import RunError
from trainer.runs.kept_weights import kept_steps, load_kept
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_data import name_of
from trainer.runs.run_files import read_json
from trainer.runs.trained_sae import TrainedSae, load


class _Point(NamedTuple):
    """One run at one step."""

    url: str
    run: str
    init: str
    seed: int
    step: int
    rows: int
    mmcs: Mmcs
    floor: float


@checked(
    runs=run_folders,
    truth=optional(arguments.folder),
    seed=arguments.count_from_0,
)
def compute_recovery_over_steps(
    runs: Sequence[str | os.PathLike[str]],
    *,
    truth: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Table:
    """Return MMCS against the true features at each snapshot and checkpoint of runs.

    Args:
        runs: Folders of trained runs on toy data.
        truth: A store of toy data; None for each run's own.
        seed: Seed of the random directions of the floor.

    Raises:
        RunError: A run has no snapshots, or no features are known.
    """
    given = arguments.path_or_none(truth)
    saes = [load(os.fspath(run)) for run in runs]
    points: list[_Point] = []
    for sae in saes:
        points += _points(sae, given, seed)
    columns = (
        Column("run", [one.run for one in points]),
        Column("init", [one.init for one in points], "began from"),
        Column("seed", np.array([one.seed for one in points])),
        Column("step", np.array([one.step for one in points])),
        Column("rows", np.array([one.rows for one in points]), "rows trained on"),
        Column("mmcs", np.array([one.mmcs.mmcs for one in points]), "MMCS"),
        Column(
            "found", np.array([one.mmcs.found for one in points]), "share above 0.9"
        ),
        Column("floor", np.array([one.floor for one in points]), "random floor"),
    )
    return Table(
        "recovery_over_steps",
        "Features found over training, by how the dictionary began",
        "MMCS against the true features at each snapshot, for dictionaries that began"
        " as rows of the data and for those that began as random directions. Lines are"
        " means over seeds, bands their 95 % intervals.",
        columns,
        _facts(saes, points),
    )


def plot_recovery_over_steps(table: Table) -> tuple[Figure, ...]:
    """Return the figure of `compute_recovery_over_steps`."""
    steps = np.asarray(table["step"])
    values = np.asarray(table["mmcs"])
    series = []
    for colour, init in enumerate(sorted(set(table["init"]))):
        mine = np.array([one == init for one in table["init"]])
        at, means, low, high = means_at(steps[mine], values[mine])
        band = Series("", at, means, "band", low, high, colour=colour)
        series += [band, Series(f"{init} start", at, means, colour=colour)]
    _, rules = floor_of(steps, np.asarray(table["floor"]))
    return (
        Figure(
            "recovery_over_steps",
            Axis("training step", log=True),
            Axis("MMCS", zero=True, limits=(0, 1)),
            tuple(series),
            "Features found over training",
            rules,
        ),
    )


def _points(sae: TrainedSae, given: str | None, seed: int) -> list[_Point]:
    truth = truth_of(sae.url, sae.record, given)
    if truth is None:
        raise RunError(
            f"{sae.url}: wanted a run on toy data, whose true features are known; make"
            " a store with `actstore toy`, or give one with --truth"
        )
    steps = kept_steps(Storage(sae.url))
    if not steps:
        raise RunError(
            f"{sae.url}: wanted SAEs from the middle of training, and there are none;"
            " train with --snapshots 20"
        )
    decoder = decoder_of(sae)
    floor = random_floor(sae.n_latents, decoder.shape[1], seed)
    init = _init_of(sae)
    return [_point(sae, init, step, truth, floor) for step in steps]


def _point(sae: TrainedSae, init: str, step: int, truth: Truth, floor: float) -> _Point:
    kept = load_kept(sae.url, step)
    return _Point(
        url=sae.url,
        run=name_of(sae.url, sae.record),
        init=init,
        seed=sae.record.seed,
        step=step,
        rows=kept.rows,
        mmcs=mmcs(truth.directions, decoder_of(kept.sae)),
        floor=floor,
    )


def _init_of(sae: TrainedSae) -> str:
    try:
        return read_json(Storage(sae.url), "spec.json", TrainSpec).init
    except ObjectError:
        raise RunError(
            f"{sae.url}: it has no spec.json, which says how its dictionary began; an"
            " imported SAE has none"
        ) from None


def _facts(saes: Sequence[TrainedSae], points: Sequence[_Point]) -> dict[str, Value]:
    """Return the mean over seeds of the first and of the last MMCS of each start.

    Runs that differ in more than seed and start are told apart.
    """
    of_run: dict[str, list[_Point]] = {}
    for one in points:
        of_run.setdefault(one.url, []).append(one)
    groups = group_runs(saes)
    starts = [of_run[group.runs[0].url][0].init for group in groups]
    facts: dict[str, Value] = {"seeds": len({one.seed for one in points})}
    for group, init in sorted(zip(groups, starts, strict=True), key=itemgetter(1)):
        name = f"{init} start" if starts.count(init) == 1 else group.name
        firsts = [of_run[sae.url][0].mmcs.mmcs for sae in group.runs]
        lasts = [of_run[sae.url][-1].mmcs.mmcs for sae in group.runs]
        facts[f"first MMCS, {name}"] = shown_interval(mean_interval(firsts))
        facts[f"last MMCS, {name}"] = shown_interval(mean_interval(lasts))
    return facts
