"""One run as the analyses see it: its spec, its journal, its evaluation, its latents'
firings.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.records import EvalRecord, RunRecord, StepRecord
from trainer.errors import RunError
from trainer.runs import journal
from trainer.runs.run_files import read_json
from trainer.runs.run_tensors import (
    LATENTS,
    check_shapes,
    most_latents_bytes,
    read_tensors,
)


class RunData(NamedTuple):
    """firings: int64 [n_layers, m]; rows: int64 [n_layers]."""

    name: str
    url: str
    record: RunRecord
    steps: list[StepRecord]
    evaluation: EvalRecord
    firings: Tensor
    rows: Tensor


def read_run(url: str) -> RunData:
    """An evaluated run. Raises RunError where it is none, or not evaluated yet."""
    storage = Storage(url)
    try:
        record = read_json(storage, "sae.json", RunRecord)
        evaluation = read_json(storage, "eval.json", EvalRecord)
        latents = read_tensors(
            storage, LATENTS, ("firings", "rows"), most_latents_bytes(record)
        )
    except CorruptError:
        raise
    except ObjectError as error:
        raise RunError(
            f"{url}: wanted a finished and evaluated run; `trainer eval {url}` comes"
            f" first ({error})"
        ) from error
    shape = (len(evaluation.layers), record.n_latents)
    check_shapes({"firings": latents["firings"]}, shape, f"{url}/{LATENTS}")
    check_shapes({"rows": latents["rows"]}, shape[:1], f"{url}/{LATENTS}")
    name = record.name or url.rstrip("/").rsplit("/", 1)[-1]
    return RunData(
        name,
        url,
        record,
        journal.read(storage),
        evaluation,
        latents["firings"],
        latents["rows"],
    )


def shown(value: float, form: str = ".4g") -> str:
    """A figure in a table; a dash where there is nothing to divide by."""
    return "–" if math.isnan(value) else format(value, form)


def rows_of(evaluation: EvalRecord) -> str:
    """`1,000 held-out rows`, and whether these are all."""
    rows = f"{evaluation.rows:,} {evaluation.split.replace('_', '-')} rows"
    return f"{rows} that its filter keeps" if evaluation.filter else rows


def short(site: str) -> str:
    """`blocks.3.hook_mlp_out` as `3 mlp_out`, for axes."""
    parts = site.split(".")
    return (
        f"{parts[1]} {'.'.join(parts[2:]).replace('hook_', '')}"
        if len(parts) > 2 and parts[0] == "blocks"
        else site
    )
