"""At the end of training: thresholds at which rows have the wanted number of active
latents, exactly.

Over ROWS held-out rows (of a store that has none, rows of the stream) the margins of
all latents, by how much their pre-activations are above where they fire, are collected
as far as they are large; the n-th largest, n = L0 times the rows, is where thresholds
move to. That sets the thresholds of BatchTopK and Matryoshka, which selected by batch
until now, and takes the last per cent off the L0 that penalised kinds were steered to.
Held-out rows are other documents, on which the L0 is a few per cent off that of
training rows; it is theirs that evaluation reports and a user gets. One number is taken
from them. Kinds whose L0 follows from a given penalty stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from actstore.stream.stream import Stream
from schemas.sae import BatchTopK, Matryoshka, Penalised, SaeSpec, inner_of
from schemas.stream import StreamState
from trainer.kernels.select_across_processes import Peers, largest_of_all
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.build import Sae, latents_of, raise_thresholds
from trainer.saes.ops import ScaledRows
from trainer.saes.topk import TopKSae
from trainer.training.run_stream import next_batch

if TYPE_CHECKING:
    from trainer.training.learner import Learner

ROWS = 1 << 17
# margins kept, over those wanted; the second where the first rows were unlike the rest
SPARES = (1.5, 6.0)
MARGINS = 1 << 30  # bytes of them, of runs that are read rows for together
_FLOAT = 4
_BLOCK = 512  # rows whose margins [n, m] are in memory at once


def wanted_l0(spec: SaeSpec) -> float | None:
    """The mean L0 that a spec asks for outside training; None where it asks for none,
    or has it anyway (topk).
    """
    inner = inner_of(spec)
    if isinstance(inner, BatchTopK | Matryoshka):
        return inner.k
    return inner.steered_l0 if isinstance(inner, Penalised) else None


class Result(NamedTuple):
    """A run at its end. sae: the learner's result; end: where its stream was then, if
    that goes on.
    """

    learner: Learner
    sae: Sae
    end: StreamState | None


@torch.no_grad()
def calibrate(stream: Stream, runs: Sequence[Result]) -> None:
    """Move the thresholds of runs that share a stream, so that rows have the L0 that
    each of them wants. ScaledRows held out are read once for all runs, as far as their
    margins fit into MARGINS. All processes of a run call this together; the stream then
    goes back.
    """
    wanted = [run for run in runs if wanted_l0(run.learner.spec.sae) is not None]
    start, held_out = stream.state(), stream.held_out()
    try:
        if held_out is not None:
            for together in _fitting(wanted):
                _move(held_out, together)
            return
        for run in wanted:
            if run.end is not None:
                stream.restore(run.end)
            _move(stream, [run])
    finally:
        if held_out is not None:
            held_out.close()
        stream.restore(start)


def _fitting(runs: Sequence[Result]) -> list[list[Result]]:
    """Runs whose margins are in memory together."""
    parts: list[list[Result]] = []
    taken = math.inf
    for run in runs:
        size = SPARES[0] * ROWS * _l0(run) * _FLOAT
        if taken + size > MARGINS:
            parts.append([])
            taken = 0.0
        parts[-1].append(run)
        taken += size
    return parts


def _move(stream: Stream, runs: Sequence[Result]) -> None:
    """Of runs in one pass; what the first pass kept too little for, in a second."""
    start, parallel = stream.state(), runs[0].learner.parallel
    for spare in SPARES:
        levels = [
            Levels(
                run.sae, _l0(run), spare, None if parallel is None else parallel.world
            )
            for run in runs
        ]
        for _ in range(0, min(ROWS, stream.rows_per_epoch), stream.spec.batch):
            batch = next_batch(stream, parallel)
            if batch is None:
                break
            for run, level in zip(runs, levels, strict=True):
                rows = run.learner.rows(batch.x, batch.layer, batch.target)
                counts = level.counts(rows)
                level.add(
                    rows,
                    (
                        counts
                        if parallel is None
                        else [int(parallel.rows(n)) for n in counts]
                    ),
                )
        # a harvest that was followed has ended: its first rows are read again
        seen = levels[0].seen
        stream.restore(
            start if seen else start.model_copy(update={"epoch": 0, "batch": 0})
        )
        enough = [seen > 0 and level.enough() for level in levels]
        for run, level, done in zip(runs, levels, enough, strict=True):
            if done:
                raise_thresholds(run.sae, level.found())
        runs = [run for run, done in zip(runs, enough, strict=True) if not done]
        if not runs:
            return


def _l0(run: Result) -> float:
    l0 = wanted_l0(run.learner.spec.sae)
    assert l0 is not None
    return l0


class Levels:
    """The largest margins of rows, and the level that the wanted number of them exceed;
    one for each threshold.
    """

    def __init__(
        self, sae: Sae, l0: float, spare: float, peers: Peers | None = None
    ) -> None:
        self._sae = sae
        inner, n = latents_of(sae), 1
        if isinstance(inner, BatchTopKSae) and inner.spec.per_layer_threshold:
            n = len(inner.threshold)
        self._parts = [
            _Level(l0, spare, peers, sae.W_dec.new_zeros(0)) for _ in range(n)
        ]

    @property
    def seen(self) -> int:
        """ScaledRows so far, in all processes."""
        return sum(part.rows for part in self._parts)

    def counts(self, rows: ScaledRows) -> list[int]:
        """ScaledRows for each threshold."""
        if len(self._parts) == 1 or rows.layer is None:
            return [len(rows.x)]
        return torch.bincount(rows.layer, minlength=len(self._parts)).tolist()

    def add(self, rows: ScaledRows, counts: list[int]) -> None:
        """ScaledRows of this process; counts: those of all processes, for each
        threshold.
        """
        for part, count in zip(self._parts, counts, strict=True):
            part.rows += count
        # all processes come to the first floor, with rows or none
        for first in range(0, max(1, len(rows.x)), _BLOCK):
            x = rows.x[first : first + _BLOCK]
            layer = None if rows.layer is None else rows.layer[first : first + _BLOCK]
            margins = _margins(self._sae, x, layer)
            for i, part in enumerate(self._parts):
                own = (
                    margins
                    if layer is None or len(self._parts) == 1
                    else margins[layer == i]
                )
                part.add(own, together=first == 0)

    def enough(self) -> bool:
        """Whether as many margins were kept as are wanted."""
        return all(part.enough() for part in self._parts)

    def found(self) -> Tensor:
        """By how much thresholds have to rise: [1], or [n_sites]."""
        return torch.stack([part.found() for part in self._parts])


class _Level:
    def __init__(
        self, l0: float, spare: float, peers: Peers | None, none: Tensor
    ) -> None:
        self._l0, self._spare, self._peers, self._none = l0, spare, peers, none
        self._kept: list[Tensor] = []
        self._floor: float | None = None
        self.rows = 0

    def add(self, margins: Tensor, together: bool) -> None:
        """together: all processes do this now, and may agree on a floor."""
        if self._floor is None and (together or self._peers is None):
            self._floor = self._first_floor(margins)
        flat = margins.flatten()
        self._kept.append(flat if self._floor is None else flat[flat > self._floor])

    def enough(self) -> bool:
        n = sum(len(part) for part in self._kept)
        return (n if self._peers is None else self._peers.total(n)) >= self._wanted

    def found(self) -> Tensor:
        values, n = torch.cat([self._none, *self._kept]), self._wanted
        if self._peers is None:
            n = min(n, len(values))
            return (
                values.sort(descending=True).values[n - 1]
                if n
                else values.new_zeros(())
            )
        least = self._peers.least(float(values.min()) if len(values) else math.inf)
        # as positive numbers, whose bits are in their order
        chosen = values[
            largest_of_all(
                values - least + torch.finfo(torch.float32).tiny, n, self._peers
            )
        ]
        level = self._peers.least(float(chosen.min()) if len(chosen) else math.inf)
        return values.new_tensor(level if math.isfinite(level) else 0.0)

    @property
    def _wanted(self) -> int:
        return max(1, round(self._l0 * self.rows)) if self.rows else 0

    def _first_floor(self, margins: Tensor) -> float | None:
        """A level that more margins than are wanted exceed, as far as these can tell;
        None where there are none.
        """
        n, flat = math.ceil(self._spare * self._l0 * len(margins)), margins.flatten()
        floor = math.inf
        if len(margins):
            floor = float(flat.topk(n).values[-1]) if n < len(flat) else -math.inf
        if self._peers is not None:
            floor = self._peers.least(floor)
        return None if floor == math.inf else floor


def _margins(sae: Sae, x: Tensor, layer: Tensor | None) -> Tensor:
    inner = latents_of(sae)
    assert not isinstance(inner, TopKSae)  # which has no threshold
    return inner.margins(x.flatten(1), layer)
