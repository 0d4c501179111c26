"""Reads an evaluated run for figures and reports, and formats its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.records import (
    CheckpointEval,
    EvalRecord,
    LayerMetrics,
    ModelMetrics,
    RunRecord,
    StepRecord,
)
from schemas.train import TrainSpec
from trainer.errors import RunError
from trainer.runs import checkpoint_evals, journal
from trainer.runs.run_arguments import run_url
from trainer.runs.run_files import read_json
from trainer.runs.run_tensors import (
    LATENTS,
    check_shapes,
    most_latents_bytes,
    read_tensors,
)

MODEL_FIGURES = (
    "CE clean",
    "CE SAE",
    "CE zero",
    "CE mean",
    "recovered (zero)",
    "recovered (mean)",
    "KL",
)
"""The names in tables of the figures that `model_figures` returns."""


class RunData(NamedTuple):
    """One run as the analyses see it.

    Attributes:
        name: What tables and figures call it.
        url: Its folder.
        record: What was trained, and on what.
        steps: The records of its journal.
        evaluation: Its metrics.
        firings: On how many rows of each layer each latent fired, int64 [n_layers, m].
        rows: How many rows of each layer were evaluated, int64 [n_layers].
        checkpoints: Its metrics in training, by step; empty where they were not asked
            for (`trainer eval --checkpoints`).
        spec: What was asked of training; None for a run without `spec.json`.
    """

    name: str
    url: str
    record: RunRecord
    steps: list[StepRecord]
    evaluation: EvalRecord
    firings: Tensor
    rows: Tensor
    checkpoints: Sequence[CheckpointEval] = ()
    spec: TrainSpec | None = None


def name_of(url: str, record: RunRecord) -> str:
    """Return what tables and figures call a run: its name, or that of its folder."""
    return record.name or url.rstrip("/").rpartition("/")[2]


def read_run(url: str) -> RunData:
    """Read an evaluated run, whose folder, URL or name in a catalog is given.

    Raises:
        CatalogError: The name leads to nothing, or to another run than was published.
        RunError: It is no finished run, it has not been evaluated, or its files do not
            fit each other.
    """
    url = run_url(url)
    storage = Storage(url)
    try:
        record = read_json(storage, "sae.json", RunRecord)
        evaluation = read_json(storage, "eval.json", EvalRecord)
        latents = read_tensors(
            storage, LATENTS, ("firings", "rows"), most_latents_bytes(record)
        )
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError as error:
        raise RunError(
            f"{url}: wanted a finished and evaluated run; run `trainer eval {url}`"
            f" first ({error})"
        ) from error
    n_layers = len(evaluation.layers)
    where = f"{url}/{LATENTS}"
    check_shapes({"firings": latents["firings"]}, (n_layers, record.n_latents), where)
    check_shapes({"rows": latents["rows"]}, (n_layers,), where)
    return RunData(
        name=name_of(url, record),
        url=url,
        record=record,
        steps=journal.read(storage),
        evaluation=evaluation,
        firings=latents["firings"],
        rows=latents["rows"],
        checkpoints=checkpoint_evals.read(storage),
        spec=read_spec(storage),
    )


def read_spec(storage: Storage) -> TrainSpec | None:
    """Return what was asked of a run's training; None where there is no `spec.json`."""
    if not storage.exists("spec.json"):
        return None
    return read_json(storage, "spec.json", TrainSpec)


def shown_figure(value: float, form: str = ".4g") -> str:
    """Return a figure for a table; a dash for NaN."""
    return "–" if math.isnan(value) else format(value, form)


def rows_phrase(evaluation: EvalRecord) -> str:
    """Return which rows were evaluated, such as `1,000 held-out rows`."""
    split = evaluation.split.replace("_", "-")
    rows = f"{evaluation.rows:,} {split} rows"
    return f"{rows} that its filter keeps" if evaluation.filter else rows


def row_figures(layer: LayerMetrics) -> list[str]:
    """Return FVU, MSE, L0, L1, decoder-weighted L1 and suppression for a table."""
    figures = (
        layer.fvu,
        layer.mse,
        layer.l0,
        layer.l1,
        layer.l1_decoder,
        layer.suppression,
    )
    return [shown_figure(figure) for figure in figures]


def model_figures(effect: ModelMetrics) -> list[str]:
    """Return the figures that `MODEL_FIGURES` names, for a table."""
    figures = (
        effect.ce_clean,
        effect.ce_sae,
        effect.ce_zero,
        effect.ce_mean,
        effect.recovered_zero,
        effect.recovered_mean,
        effect.kl,
    )
    return [shown_figure(figure, ".4f") for figure in figures]


def model_effects(evaluation: EvalRecord) -> list[ModelMetrics]:
    """Return the effect on the language model of each site, then the pooled one.

    Empty where the language model was not run.
    """
    effects = list(evaluation.model)
    if effects and evaluation.model_pooled is not None:
        effects.append(evaluation.model_pooled)
    return effects
