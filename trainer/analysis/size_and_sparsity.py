"""Heat maps over dictionary size and sparsity, of toy data and of a language model.

Third document: docs/methods.md, section 4. Both groups of runs are drawn with the same
axes and limits, so that they can be laid side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.figures.figure import Axis, Drawing, Figure, HeatMap, Rule, Series
from actstore.figures.table import Column, Table, Value
from trainer.analysis.compare_mmcs import compare, floor_of
from trainer.analysis.seed_groups import Sparsity, sparsity_setting
from trainer.errors import RunError
from trainer.runs.run_arguments import run_folders
from trainer.runs.run_data import RunData, read_run
from trainer.runs.trained_sae import load

TOY = "toy data"
MODEL = "language model"
# Column, label of its heat maps, and the limits that are the same for any runs.
METRICS: tuple[tuple[str, str, tuple[float, float] | None], ...] = (
    ("mmcs", "MMCS", (0.0, 1.0)),
    ("dead", "share of latents that never fired", (0.0, 1.0)),
    ("fvu", "FVU", None),
    ("l0", "L0", None),
)


class _Row(NamedTuple):
    """One run of the table; `mmcs` and `floor` are NaN where nothing is compared."""

    group: str
    run: RunData
    against: str
    mmcs: float
    floor: float

    @property
    def expansion(self) -> float:
        """The size of the dictionary over the width of a row."""
        return self.run.record.n_latents / self.run.record.d

    @property
    def sparsity(self) -> Sparsity:
        """The setting of the run's sparsity."""
        return sparsity_setting(self.run)


@checked(
    toy=run_folders,
    model=run_folders,
    truth=optional(arguments.folder),
    seed=arguments.count_from_0,
)
def compute_size_and_sparsity(
    toy: Sequence[str | os.PathLike[str]] = (),
    model: Sequence[str | os.PathLike[str]] = (),
    *,
    truth: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Table:
    """Return MMCS, dead latents, FVU and L0 of runs by size and sparsity.

    Sizes are given over the width of a row, so that runs of different widths share an
    axis.

    Args:
        toy: Folders of evaluated runs on toy data.
        model: Folders of evaluated runs on a model's activations.
        truth: A store of toy data for the runs of `toy`; None for their own stores.
        seed: Seed of the random directions of the floor.

    Raises:
        RunError: A run is not evaluated, or there are none at all.
    """
    given = arguments.path_or_none(truth)
    rows = [
        *_rows(TOY, [os.fspath(run) for run in toy], given, seed),
        *_rows(MODEL, [os.fspath(run) for run in model], None, seed),
    ]
    if not rows:
        raise RunError("wanted runs of toy data, of a language model, or of both")
    pooled = [row.run.evaluation.pooled for row in rows]
    records = [row.run.record for row in rows]
    dead = [1 - row.run.evaluation.alive_share for row in rows]
    columns = (
        Column("group", [row.group for row in rows]),
        Column("run", [row.run.name for row in rows]),
        Column("latents", np.array([one.n_latents for one in records])),
        Column(
            "expansion",
            np.array([row.expansion for row in rows]),
            "dictionary size / d",
        ),
        Column("sparsity", [str(row.sparsity) for row in rows]),
        Column("sparsity_value", np.array([row.sparsity.value for row in rows])),
        Column("seed", np.array([one.seed for one in records])),
        Column("against", [row.against for row in rows]),
        Column("mmcs", np.array([row.mmcs for row in rows]), "MMCS"),
        Column("floor", np.array([row.floor for row in rows]), "random floor"),
        Column("dead", np.array(dead), "share dead"),
        Column("fvu", np.array([one.fvu for one in pooled]), "FVU"),
        Column("l0", np.array([one.l0 for one in pooled]), "L0", "latents"),
    )
    return Table(
        "size_and_sparsity",
        "Dictionary size and sparsity, on toy data and on a language model",
        "Each cell is a dictionary size and a sparsity, the mean over seeds. On toy"
        " data MMCS is against the true features, on a model's activations against the"
        " next larger dictionary; compare it with the random floor only.",
        columns,
        _facts(rows),
    )


def plot_size_and_sparsity(table: Table) -> tuple[Drawing, ...]:
    """Return the heat maps of `compute_size_and_sparsity`, groups side by side."""
    groups = [name for name in (TOY, MODEL) if name in table["group"]]
    drawings: list[Drawing] = []
    for name, label, fixed in METRICS:
        limits = fixed or _limits(table[name])
        drawings += [_heat_map(table, group, name, label, limits) for group in groups]
    return (*drawings, _by_size(table, groups))


def _rows(group: str, urls: Sequence[str], truth: str | None, seed: int) -> list[_Row]:
    runs = [read_run(url) for url in urls]
    comparisons = compare([load(url) for url in urls], truth, seed)
    return [
        _Row(group, run, one.against, one.mmcs.mmcs, one.floor)
        for run, one in zip(runs, comparisons, strict=True)
    ]


def _facts(rows: Sequence[_Row]) -> dict[str, Value]:
    facts: dict[str, Value] = {}
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        facts[f"runs on {group}"] = len(mine)
        facts[f"seeds on {group}"] = len({row.run.record.seed for row in mine})
    return facts


def _heat_map(
    table: Table,
    group: str,
    name: str,
    label: str,
    limits: tuple[float, float] | None,
) -> HeatMap:
    sizes = sorted(set(np.asarray(table["expansion"]).tolist()))
    sparsities = _sparsities(table)
    values = np.full((len(sparsities), len(sizes)), np.nan)
    for y, sparsity in enumerate(sparsities):
        for x, size in enumerate(sizes):
            values[y, x] = _cell(table, group, name, size, sparsity)
    return HeatMap(
        f"size_and_sparsity-{name}-{'toy' if group == TOY else 'model'}",
        Axis("dictionary size / d", categories=tuple(f"{one:g}" for one in sizes)),
        Axis("sparsity", categories=tuple(sparsities)),
        values,
        label,
        f"{label}: {group}",
        limits,
    )


def _cell(table: Table, group: str, name: str, size: float, sparsity: str) -> float:
    """Return the mean of a metric over the runs of a cell; NaN where there is none."""
    found = [
        value
        for value, in_group, at_size, at_sparsity in zip(
            np.asarray(table[name]).tolist(),
            table["group"],
            np.asarray(table["expansion"]).tolist(),
            table["sparsity"],
            strict=True,
        )
        if (in_group, at_size, at_sparsity) == (group, size, sparsity)
        and not math.isnan(value)
    ]
    return sum(found) / len(found) if found else math.nan


def _sparsities(table: Table) -> list[str]:
    """Return the settings of both groups: by name, then by value."""
    pairs = zip(table["sparsity"], table["sparsity_value"], strict=True)
    by_value = {label: (label.split(" ")[0], float(value)) for label, value in pairs}
    return sorted(by_value, key=lambda label: by_value[label])


def _limits(values: NDArray[np.floating]) -> tuple[float, float] | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    return 0.0, float(known.max()) or 1.0


def _by_size(table: Table, groups: Sequence[str]) -> Figure:
    """Return MMCS by dictionary size, with the floor, a line for each sparsity."""
    sizes = np.asarray(table["expansion"])
    sparsities = _sparsities(table)
    series = []
    for group in groups:
        for i, sparsity in enumerate(sparsities):
            places = sorted(set(sizes.tolist()))
            values = [_cell(table, group, "mmcs", x, sparsity) for x in places]
            if all(math.isnan(value) for value in values):
                continue
            one = Series(
                f"{group}, {sparsity}",
                places,
                values,
                shade=i / max(1, len(sparsities) - 1),
                dashed=group == MODEL,
            )
            series.append(one)
    floors: list[Series] = []
    rules: list[Rule] = []
    for group in groups:
        mine = np.array([one == group for one in table["group"]])
        lines, of_group = floor_of(sizes[mine], np.asarray(table["floor"])[mine])
        floors += lines
        rules += of_group
    return Figure(
        "size_and_sparsity-mmcs-by-size",
        Axis("dictionary size / d", log=True),
        Axis("MMCS", zero=True, limits=(0, 1)),
        (*floors, *series),
        "MMCS by dictionary size",
        tuple(rules),
    )
