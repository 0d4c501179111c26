"""Metrics of runs over their training: a row for each run, kept SAE and site.

The evaluations are those of `trainer eval --checkpoints`; `docs/metrics.md` defines
what they measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError
from actstore.figures.figure import Axis, Figure, Series
from actstore.figures.layer_order import short_site
from actstore.figures.table import Column, Table
from actstore.format.storage import Storage
from schemas.records import CheckpointEval, ModelMetrics, RunRecord
from trainer.errors import RunError
from trainer.runs import checkpoint_evals
from trainer.runs.run_files import read_json

NAME = "over_training"
POOLED = "pooled"


class _Metric(NamedTuple):
    """A metric of the table, and its figure's vertical axis."""

    name: str
    label: str
    unit: str = ""
    zero: bool = True


METRICS = (
    _Metric("fvu", "FVU"),
    _Metric("l0", "L0", "latents per row"),
    _Metric("suppression", "suppression, mean |x'| / |x|", zero=False),
    _Metric("recovered_zero", "CE recovered from zeros", zero=False),
    _Metric("recovered_mean", "CE recovered from the mean", zero=False),
    _Metric("kl", "KL", "nats per token"),
    _Metric("dead", "dead latents on held-out rows", "latents"),
)


def compute_over_training(
    runs: Sequence[str], sites: Sequence[str] | None = None
) -> Table:
    """Return the metrics of runs over training.

    Args:
        runs: The runs' folders, each with `evals.jsonl`.
        sites: The sites to take, "pooled" among them; None for all and pooled.

    Returns:
        Rows by run, then by step, then by site. CE and KL are NaN where the language
        model was not run; dead latents are those of a whole SAE, in the rows of pooled.

    Raises:
        RunError: A run has no such evaluations, or a site is none of any run's.
    """
    if not runs:
        raise RunError("over-training: wanted one run or more, got none")
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        record, evaluations = _read(run)
        name = record.name or run.rstrip("/").rsplit("/", 1)[-1]
        about = {"number": number, "run": name, "seed": record.seed}
        for evaluation in evaluations:
            rows.extend({**about, **row} for row in _rows_of(evaluation))
    if sites is not None:
        rows = [row for row in rows if row["site"] in sites]
    _check_sites(rows, runs, sites)
    columns = [
        Column("number", _column(rows, "number", np.int64), "run number"),
        Column("run", [row["run"] for row in rows]),
        Column("seed", _column(rows, "seed", np.int64)),
        Column("step", _column(rows, "step", np.int64), "step", "updates"),
        Column("rows", _column(rows, "rows", np.int64), "rows seen", "rows"),
        Column("site", [row["site"] for row in rows]),
    ]
    for metric in METRICS:
        values = _column(rows, metric.name, np.float64)
        columns.append(Column(metric.name, values, metric.label, metric.unit))
    return Table(
        name=NAME,
        title="Metrics over training",
        text=(
            "SAEs kept from training, on rows that were held out, in the units of the"
            " activations, against the rows that each had been trained on. Thresholds"
            " are those of training, which are calibrated at its end only."
        ),
        columns=tuple(columns),
        facts={
            "runs": len(runs),
            "held-out rows per SAE": int(max(row["evaluated"] for row in rows)),
        },
    )


def plot_over_training(table: Table) -> tuple[Figure, ...]:
    """Return a figure for each metric: lines over the rows seen.

    Of one run there is a line for each of its sites, of several runs one for each run,
    pooled where the table has that.
    """
    numbers = np.unique(table["number"])
    site_names = list(dict.fromkeys(table["site"]))
    if len(numbers) > 1 and POOLED in site_names:
        site_names = [POOLED]
    figures = []
    for metric in METRICS:
        if np.isnan(table[metric.name]).all():
            continue
        series = []
        for number in numbers:
            for site in site_names:
                line = _line(table, metric.name, int(number), site)
                if line is not None:
                    series.append(_named(line, table, site, site_names, len(numbers)))
        label = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
        figures.append(
            Figure(
                name=f"{NAME}-{metric.name}",
                x=Axis("rows seen (rows)", zero=True),
                y=Axis(label, zero=metric.zero),
                series=tuple(series),
                title=f"{metric.label} over training",
            )
        )
    return tuple(figures)


class _Line(NamedTuple):
    """One curve: the run's number and name, and its points [n]."""

    number: int
    run: str
    x: NDArray[Any]
    y: NDArray[Any]


def _line(table: Table, metric: str, number: int, site: str) -> _Line | None:
    """Return the curve of one run and site; None where it has no value."""
    is_site = np.array([name == site for name in table["site"]])
    chosen = is_site & (table["number"] == number) & ~np.isnan(table[metric])
    if not chosen.any():
        return None
    first = int(np.flatnonzero(chosen)[0])
    return _Line(
        number, table["run"][first], table["rows"][chosen], table[metric][chosen]
    )


def _named(
    line: _Line, table: Table, site: str, site_names: Sequence[str], n_runs: int
) -> Series:
    """Return a curve with the name and colour that tell it from the others."""
    layers = [name for name in site_names if name != POOLED]
    name = line.run if n_runs > 1 else short_site(site)
    if n_runs > 1 and len(site_names) > 1:
        name = f"{line.run}, {short_site(site)}"
    shade = None
    if n_runs == 1 and site != POOLED:
        shade = layers.index(site) / max(1, len(layers) - 1)
    seed = table["seed"][np.flatnonzero(table["number"] == line.number)[0]]
    label = f"{line.run}, seed {seed}, {site}"
    return Series(
        name=name,
        x=line.x,
        y=line.y,
        labels=[label] * len(line.x),
        colour=line.number if n_runs > 1 and len(site_names) == 1 else None,
        shade=shade,
        run=line.number if n_runs > 1 else None,
        dashed=n_runs == 1 and site == POOLED,
    )


def _read(run: str) -> tuple[RunRecord, list[CheckpointEval]]:
    """Return the record and the evaluations of a run."""
    storage = Storage(run)
    try:
        record = read_json(storage, "sae.json", RunRecord)
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError as error:
        raise RunError(f"{run}: wanted a finished run ({error})") from None
    evaluations = checkpoint_evals.read(storage)
    if not evaluations:
        raise RunError(
            f"{run}: wanted evaluations over its training (evals.jsonl); run `trainer"
            f" eval {run} --checkpoints` first"
        )
    return record, evaluations


def _rows_of(one: CheckpointEval) -> list[dict[str, Any]]:
    """Return the rows of one SAE: its sites', then the pooled one."""
    evaluation = one.evaluation
    effects: dict[str, ModelMetrics] = {
        effect.site: effect for effect in evaluation.model
    }
    if evaluation.model_pooled is not None:
        effects[POOLED] = evaluation.model_pooled
    rows = []
    for layer in (*evaluation.layers, evaluation.pooled):
        effect = effects.get(layer.site)
        is_pooled = layer is evaluation.pooled
        rows.append(
            {
                "step": one.step,
                "rows": one.rows,
                "site": POOLED if is_pooled else layer.site,
                "evaluated": evaluation.rows,
                "fvu": layer.fvu,
                "l0": layer.l0,
                "suppression": layer.suppression,
                "recovered_zero": effect.recovered_zero if effect else math.nan,
                "recovered_mean": effect.recovered_mean if effect else math.nan,
                "kl": effect.kl if effect else math.nan,
                "dead": float(evaluation.dead) if is_pooled else math.nan,
            }
        )
    return rows


def _check_sites(
    rows: list[dict[str, Any]], runs: Sequence[str], sites: Sequence[str] | None
) -> None:
    found = {row["site"] for row in rows}
    missing = [site for site in sites or () if site not in found]
    if missing:
        known: list[str] = []
        for run in runs:
            record, _ = _read(run)
            known.extend(record.sites)
        raise RunError(
            f"--site {missing[0]}: none of these runs has it; they have"
            f" {', '.join([*dict.fromkeys(known), POOLED])}"
        )


def _column(rows: list[dict[str, Any]], name: str, dtype: type) -> NDArray[Any]:
    return np.array([row[name] for row in rows], dtype=dtype)
