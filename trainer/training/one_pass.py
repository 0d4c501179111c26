"""Trains one pass that a PassSpec describes, in whatever process was started for it.

Ray's tasks, Slurm's jobs and the service's workers all come here: what crosses to them
is JSON, never code.
"""

from __future__ import annotations

from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.machine.stop_signals import Stop
from actstore.store.open_store import open as open_store
from schemas.service import PassSpec
from trainer.training.journal_sinks import sinks_for
from trainer.training.step_loop import Report
from trainer.training.train_group import train_group


def train_pass(
    spec: PassSpec, *, stop: Stop | None = None, report: Report | None = None
) -> None:
    """Train the runs of a pass; those that have begun go on from their checkpoints.

    Args:
        spec: The runs, their store and the device.
        stop: Once it has a signal, training ends after a step and saves.
        report: Is given the progress after each step.

    Raises:
        TrainerError, StoreError: As `trainer.train` does.
        Stopped: There was a signal.
    """
    keep_freed_memory()
    first = next(iter(spec.runs.values()))
    train_group(
        open_store(spec.store, follow=first.stream.follow),
        spec.runs,
        device=spec.device,
        on_corrupt=spec.on_corrupt,
        resume=True,
        report=report,
        sinks=sinks_for(list(spec.runs), spec.sinks),
        stop=stop,
    )
