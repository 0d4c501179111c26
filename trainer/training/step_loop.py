"""The loop over a stream's batches, in which the runs of a group are trained.

Each run takes its steps, is logged and saved, and ends in good order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from actstore.format.storage import Storage
from actstore.machine.stop_signals import Stop, Stopped
from actstore.stream.stream import Batch, Stream
from schemas.records import StepRecord
from schemas.stream import StreamState
from schemas.train import TrainSpec
from trainer.errors import DivergedError
from trainer.runs.journal import Journal
from trainer.runs.kept_weights import snapshot_steps
from trainer.training import checkpoint, snapshot
from trainer.training.learner import Interval, Learner
from trainer.training.resample_dead import resample
from trainer.training.run_stream import next_batch
from trainer.training.save_times import Timetable


@dataclass
class Run:
    """One SAE of a group: where it is written, and what trains it."""

    spec: TrainSpec
    storage: Storage
    learner: Learner
    journal: Journal
    sites: tuple[str, ...]
    saved: int = 0  # the step of the last checkpoint
    end: StreamState | None = None  # where the stream was then

    @property
    def snapshot_steps(self) -> frozenset[int]:
        """The steps after which a snapshot is written."""
        return snapshot_steps(self.spec.snapshots, self.learner.steps)

    @property
    def lead(self) -> bool:
        """True in the one process that writes."""
        return self.learner.parallel.world.lead


@dataclass
class Progress:
    """The figures that a progress display shows."""

    step: int
    steps: int
    rows_per_s: float
    stall: float
    last: dict[str, Interval] = field(default_factory=dict)
    # since the first step of this process, as of the last interval, like the next
    seconds: float = 0.0
    rows: int = 0  # trained on meanwhile
    stall_s: float = 0.0


Report = Callable[[Progress], None]


def take_steps(
    stream: Stream,
    runs: Sequence[Run],
    report: Report | None,
    stop: Stop,
) -> None:
    """Train runs from where they are to their ends, or to a signal.

    Call it inside `stop.held()`.

    Raises:
        Stopped: There was a signal; all is saved.
        DivergedError: A loss or weights are not finite.
    """
    n_steps = max(run.learner.steps for run in runs)
    step = min(run.learner.step for run in runs)
    clock = _Clock(stream, step)
    progress = Progress(step, n_steps, 0.0, 0.0)
    timetable = _timetable(runs, stop, step, n_steps)
    while step < n_steps:
        batch = _next_batch(stream, runs, stop, progress)
        if batch is None:
            break
        # others are ahead, or done
        active = [run for run in runs if run.learner.step == step < run.learner.steps]
        for run in active:
            run.learner.update(batch.x, batch.layer, batch.target, batch.batch_position)
        resample(stream, [run.learner for run in active])
        step += 1
        progress.step = step
        every = runs[0].spec.log_every  # runs of a group agree on it
        logged = [run for run in active if step % every == 0 or _is_last(run)]
        _log_all(logged, step, clock, progress)
        if report is not None:
            report(progress)
        due = timetable.due(step)
        for run in active:
            if due.save or _saves_at(run, step):
                _save(run, stream.state())
            if step in run.snapshot_steps:
                snapshot.save(run.storage, run.learner)
        if all(run.saved == step for run in active):
            timetable.saved()
        if due.stop:
            _stop(runs, stream.state(), due.stop, progress)
    left = [run for run in runs if run.learner.step < run.learner.steps]
    _end_early(stream, left, progress)


def _log_all(runs: Sequence[Run], step: int, clock: _Clock, progress: Progress) -> None:
    if not runs:
        return
    clock.measure(progress, step)
    for run in runs:
        progress.last[run.storage.url] = _log(run, progress)


def _is_last(run: Run) -> bool:
    """Return whether a run has taken its last step."""
    return run.learner.step == run.learner.steps


def _saves_at(run: Run, step: int) -> bool:
    """Return whether a run saves after a step of its own plan."""
    return step % run.spec.checkpoint_every == 0 or _is_last(run)


def _timetable(runs: Sequence[Run], stop: Stop, step: int, n_steps: int) -> Timetable:
    minutes = min(run.spec.checkpoint_minutes for run in runs)
    world = runs[0].learner.parallel.world
    return Timetable(minutes, stop, step, n_steps, world)


class _Clock:
    """Speeds since the last interval, and since the first step."""

    def __init__(self, stream: Stream, step: int) -> None:
        self._stream = stream
        self._start = self._read(step)
        self._last = self._start

    def measure(self, progress: Progress, step: int) -> None:
        """Write them into the progress; begin a new interval."""
        now = self._read(step)
        seconds = max(now.seconds - self._last.seconds, 1e-9)
        progress.rows_per_s = (now.rows - self._last.rows) / seconds
        progress.stall = (now.stall_s - self._last.stall_s) / seconds
        progress.seconds = now.seconds - self._start.seconds
        progress.stall_s = now.stall_s - self._start.stall_s
        progress.rows = now.rows - self._start.rows
        self._last = now

    def _read(self, step: int) -> _Reading:
        return _Reading(
            time.perf_counter(), self._stream.stall_s, self._stream.rows_in(step)
        )


class _Reading(NamedTuple):
    """The reading of a clock."""

    seconds: float
    stall_s: float
    """Seconds in which training waited for rows."""
    rows: int


def _next_batch(
    stream: Stream, runs: Sequence[Run], stop: Stop, progress: Progress
) -> Batch | None:
    """Return the next batch, None at the stream's end.

    In a process alone a signal also ends the wait for data, which may be long where a
    harvest is followed.
    """
    parallel = runs[0].learner.parallel
    if parallel.world.size > 1:
        return next_batch(stream, parallel)
    # as all runs have it: the signal may come when the stream has already gone on
    before = stream.state()
    try:
        with stop.released():
            return next_batch(stream)
    except Stopped as stopped:
        _stop(runs, before, stopped.number, progress)


def _stop(
    runs: Sequence[Run], stream: StreamState, number: int, progress: Progress
) -> NoReturn:
    """Save what has not been saved at its step yet, and raise Stopped."""
    for run in runs:
        if run.learner.step not in {0, run.saved}:
            _save(run, stream)
    raise Stopped(
        number, f"stopped and saved at step {progress.step:,} of {progress.steps:,}"
    )


def _end_early(stream: Stream, runs: Sequence[Run], progress: Progress) -> None:
    """Log and save runs whose stream ended before them.

    A harvest that was followed had fewer rows than planned.
    """
    for run in runs:
        if run.learner.sums["steps"]:
            progress.last[run.storage.url] = _log(run, progress)
        _save(run, stream.state())


def _save(run: Run, stream: StreamState) -> None:
    if not run.learner.finite():  # a checkpoint that is there is a good one
        raise _diverged(run, "the loss or the weights are not finite")
    if run.lead:
        # first: resuming reads no more of it than up to its checkpoint, and needs all
        # of that
        run.journal.write()
    checkpoint.save(run.storage, run.learner, stream, run.spec.keep)
    run.saved, run.end = run.learner.step, stream


def _log(run: Run, progress: Progress) -> Interval:
    learner = run.learner
    interval = learner.interval()
    # of one site the figures are those of the whole
    layers = {}
    if len(run.sites) > 1:
        layers = dict(zip(run.sites, interval.layers, strict=True))
    if not math.isfinite(interval.loss):
        raise _diverged(run, f"the loss is {interval.loss}")
    run.journal.add(
        StepRecord(
            step=learner.step,
            rows=interval.rows,
            loss=interval.loss,
            mse=interval.mse,
            l0=interval.l0,
            fvu=interval.fvu,
            dead=interval.dead,
            lr=learner.optimiser.param_groups[0]["lr"],
            rows_per_s=progress.rows_per_s,
            stall=progress.stall,
            layers=layers,
            parts=interval.parts,
            density=interval.density,
        )
    )
    if run.lead:
        run.journal.flush()
    return interval


def _diverged(run: Run, what: str) -> DivergedError:
    good = checkpoint.steps(run.storage)
    last = "there is no checkpoint yet"
    if good:
        last = f"the last good checkpoint is step {good[-1]}"
    return DivergedError(
        f"{run.storage.url}: {what} at step {run.learner.step}; {last}; "
        "lower the learning rate, or look for non-finite rows with `actstore norms`"
    )
