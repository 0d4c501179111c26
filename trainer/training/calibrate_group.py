"""Sets thresholds after training so that rows have the wanted L0, exactly.

Over ROWS held-out rows (of a store that has none, rows of the stream) the margins of
all latents, by how much their pre-activations are above where they fire, are collected
as far as they are large. The n-th largest, n = L0 times the rows, is where thresholds
move to: of 1,000 rows and an L0 of 32 the 32,000th. That sets the thresholds of
BatchTopK and Matryoshka, which selected by batch until now, and takes the last per cent
off the L0 that penalised kinds were steered to. Held-out rows are other documents, on
which the L0 is a few per cent off that of training rows; it is theirs that evaluation
reports and a user gets. One number is taken from them. Kinds whose L0 follows from a
given penalty stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from actstore.stream.stream import Stream
from schemas.stream import StreamState
from trainer.saes.build import Sae, latents_of
from trainer.training.run_stream import next_batch

if TYPE_CHECKING:
    from trainer.training.learner import Learner
from trainer.evaluation.thresholds_for_l0 import (
    MARGINS,
    ROWS,
    SPARES,
    Levels,
    wanted_l0,
)

_FLOAT = 4  # bytes of a margin


class Result(NamedTuple):
    """A run at its end."""

    learner: Learner
    sae: Sae
    """The learner's result."""
    end: StreamState | None
    """Where its stream was then, if that goes on."""


@torch.no_grad()
def calibrate(stream: Stream, runs: Sequence[Result]) -> None:
    """Move the thresholds of runs that share a stream, so that each has its wanted L0.

    Held-out rows are read once for all runs, as far as their margins fit into MARGINS.
    All processes of a run call this together; the stream then goes back.
    """
    wanted = [run for run in runs if wanted_l0(run.learner.spec.sae) is not None]
    start = stream.state()
    held_out = stream.held_out()
    try:
        if held_out is not None:
            for fitting in _fitting(wanted):
                _move(held_out, fitting)
            return
        # runs may have ended at different rows; each is calibrated on those that come
        # after its own
        for run in wanted:
            if run.end is not None:
                stream.restore(run.end)
            _move(stream, [run])
    finally:
        if held_out is not None:
            held_out.close()
        stream.restore(start)


def _fitting(runs: Sequence[Result]) -> list[list[Result]]:
    """Return runs in groups whose margins fit into memory together."""
    groups: list[list[Result]] = []
    taken = math.inf  # the first run begins a group
    for run in runs:
        size = SPARES[0] * ROWS * _l0(run) * _FLOAT
        if taken + size > MARGINS:
            groups.append([])
            taken = 0.0
        groups[-1].append(run)
        taken += size
    return groups


def _move(stream: Stream, runs: Sequence[Result]) -> None:
    """Move the thresholds of runs in one pass over rows.

    What the first pass kept too little for, in a second one.
    """
    start = stream.state()
    parallel = runs[0].learner.parallel
    for spare in SPARES:
        levels = [Levels(run.sae, _l0(run), spare, parallel) for run in runs]
        n_rows = min(ROWS, stream.rows_per_epoch)
        for _ in range(0, n_rows, stream.spec.batch):
            batch = next_batch(stream, parallel)
            if batch is None:
                break
            for run, level in zip(runs, levels, strict=True):
                rows = run.learner.rows(batch.x, batch.layer, batch.target)
                # the wanted L0 is that of all processes' rows, so all count together
                counts = [int(parallel.rows(n)) for n in level.counts(rows)]
                level.add(rows, counts)
        if levels[0].seen:
            stream.restore(start)
        else:
            # a harvest that was followed has ended: its first rows are read again
            stream.restore(start.model_copy(update={"epoch": 0, "batch": 0}))
        left = []
        for run, level in zip(runs, levels, strict=True):
            if level.seen and level.enough():
                latents_of(run.sae).raise_thresholds(level.found())
            else:
                left.append(run)
        if not left:
            return
        runs = left


def _l0(run: Result) -> float:
    l0 = wanted_l0(run.learner.spec.sae)
    assert l0 is not None
    return l0
