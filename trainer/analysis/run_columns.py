"""The columns that say which run a row of a table is of, and how figures show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from actstore.figures.figure import Axis, Series
from actstore.figures.layer_order import in_layer_order, short_site
from actstore.figures.table import Column, Table
from trainer.analysis.seed_groups import (
    group_runs,
    groups_over_layers,
    kind_of_run,
    names_of_groups,
    sparsity_of,
)
from trainer.errors import RunError
from trainer.runs.run_data import RunData

SHOWN_BY = ("rescale", "kind", "site")
MOST_COLOURS = 8  # more groups than these are not told apart by colour
LOG_FROM = 5.0  # an axis is logarithmic where its largest value is so many times the
# smallest one


class Field(NamedTuple):
    """A column to be: its name, its label and its unit."""

    name: str
    label: str = ""
    unit: str = ""


RUN_FIELDS = (
    Field("run"),
    Field("group", "same but for the seed"),
    Field("front", "same but for seed and sparsity"),
    Field("kind"),
    Field("seed"),
    Field("rescale", "rescaling"),
    Field("lr", "learning rate"),
    Field("n_latents", "latents"),
    Field("sparsity", "L0 or penalty asked for"),
    Field("penalty", "penalty at the end"),
    Field("rows_trained", "rows of training"),
)
ALL_LAYERS = "all layers"


def columns_of(fields: Sequence[Field], rows: Sequence[Sequence[Any]]) -> list[Column]:
    """Return columns from rows; a column is of texts where its values are.

    Without rows all columns are of numbers.
    """
    columns = []
    for place, field in enumerate(fields):
        values = [row[place] for row in rows]
        is_text = bool(values) and isinstance(values[0], str)
        kept = values if is_text else np.array(values)
        columns.append(Column(field.name, kept, field.label, field.unit))
    return columns


def run_values(
    runs: Sequence[RunData], *, over_layers: bool = False
) -> dict[str, tuple[Any, ...]]:
    """Return the values of RUN_FIELDS of each run, by its URL.

    Args:
        runs: The runs.
        over_layers: Runs of one layer each are of one group over layers.

    Raises:
        RunError: There is no run.
    """
    if not runs:
        raise RunError("which runs? give at least one evaluated run")
    grouped = groups_over_layers(runs) if over_layers else group_runs(runs)
    groups = names_of_groups(grouped)
    fronts = names_of_groups(group_runs(runs, sparsity=False))
    values = {}
    for run in runs:
        record = run.record
        values[run.url] = (
            run.name,
            groups[run.url],
            fronts[run.url],
            kind_of_run(run),
            record.seed,
            record.rescale,
            math.nan if record.lr is None else record.lr,
            record.n_latents,
            sparsity_of(run),
            math.nan if record.penalty is None else record.penalty,
            record.rows,
        )
    return values


def sites_of(runs: Sequence[RunData]) -> list[str]:
    """Return all sites that were evaluated, in the order of layers."""
    every = [layer.site for run in runs for layer in run.evaluation.layers]
    return in_layer_order(every)


def layer_axis(sites: Sequence[str]) -> Axis:
    """Return the axis of layers, in their order."""
    return Axis("layer", categories=tuple(short_site(site) for site in sites))


def number_axis(label: str, values: Any, *, zero: bool = False) -> Axis:
    """Return an axis for values; logarithmic where they are of several sizes."""
    every = np.asarray(values, dtype=np.float64)
    known = every[np.isfinite(every)]
    is_log = bool(
        len(known) and known.min() > 0 and known.max() > LOG_FROM * known.min()
    )
    return Axis(label, log=is_log, zero=zero and not is_log)


class Look(NamedTuple):
    """The colour of a series: one of those told apart, or a place on a ramp."""

    colour: int | None
    shade: float | None


def looks(values: Sequence[Any], *, ordered: bool = False) -> dict[Any, Look]:
    """Return a look for each distinct value.

    Numbers, names that differ in a number alone (`k 2`, `k 4`) and names that have an
    order are places on a ramp; other names have colours of their own.

    Args:
        values: The values; names that have an order in that order.
        ordered: Whether names have an order.
    """
    names = distinct(values)
    if names and not ordered:
        numbers = _numbers_of(names)
        if numbers is not None:
            names = sorted(names, key=numbers.__getitem__)
            ordered = len(names) > 1
    if not ordered:
        return {name: Look(place, None) for place, name in enumerate(names)}
    last = max(1, len(names) - 1)
    return {name: Look(None, place / last) for place, name in enumerate(names)}


def series_of(
    name: str, x: Any, y: Any, look: Look, *, mark: Any = "line and points", **more: Any
) -> Series:
    """Return a series of a look; error bars are left out where no end is known."""
    ends = [more.get(end) for end in ("low", "high")]
    if any(end is None or not np.isfinite(end).any() for end in ends):
        more = {key: value for key, value in more.items() if key not in {"low", "high"}}
    return Series(name, x, y, mark, colour=look.colour, shade=look.shade, **more)


def where(table: Table, **wanted: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows whose columns have given values, int64 [n]."""
    chosen = np.ones(len(table), dtype=bool)
    for name, value in wanted.items():
        column = table[name]
        chosen &= np.array([one == value for one in column], dtype=bool)
    return np.flatnonzero(chosen)


def distinct(values: Any) -> list[Any]:
    """Return the values of a column, each once, in the order they come in."""
    plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return list(dict.fromkeys(plain))


def texts(table: Table, name: str, rows: Any) -> list[str]:
    """Return the texts of a column at some rows."""
    values = table[name]
    return [str(values[row]) for row in rows]


def shown_by(table: Table) -> str:
    """Return the column whose values have the colours: `group`, where these are few.

    Else the first of `rescale`, `kind` and `site` that differs.
    """
    if len(distinct(table["group"])) <= MOST_COLOURS:
        return "group"
    for name in SHOWN_BY:
        if len(distinct(table[name])) > 1:
            return name
    return "group"


def looks_by(table: Table, by: str) -> dict[Any, Look]:
    """Return looks for the values of a column; sites are shaded in layer order."""
    values = distinct(table[by])
    if by == "site":
        return looks(in_layer_order(values), ordered=True)
    return looks(values)


def site_of(run: RunData) -> str:
    """Return the site of a run of one layer; "all layers" for others."""
    sites = run.record.sites
    return sites[0] if len(sites) == 1 else ALL_LAYERS


def _numbers_of(names: Sequence[Any]) -> dict[Any, float] | None:
    """Return the numbers that names are told apart by; None where it is not numbers."""
    if not isinstance(names[0], str):
        return {name: float(name) for name in names}
    split = [name.rpartition(" ") for name in names]
    if len({before for before, _, _ in split}) > 1:
        return None
    try:
        return {
            name: float(last) for name, (_, _, last) in zip(names, split, strict=True)
        }
    except ValueError:
        return None
