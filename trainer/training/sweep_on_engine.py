"""Gives the passes of a sweep to the engine that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.engines.engine_option import EngineOptions
from schemas.train import TrainSpec

if TYPE_CHECKING:
    from trainer.training.train import Settings


def sweep_on_engine(
    runs: dict[str, TrainSpec],
    memory: str | int | None,
    engine: EngineOptions,
    settings: Settings,
    sweep_folder: str,
) -> None:
    """Train the runs of a sweep on the machines of an engine.

    Args:
        runs: The specs, by the URL of the run's folder, which every machine has to see.
        memory: What the SAEs of one pass may take: "20GB", or bytes. None for what the
            device has free.
        engine: The engine, and how work is placed.
        settings: How the runs are trained.
        sweep_folder: The folder of all of them.

    Raises:
        SpecError, SaeError, RunError, StoreError: As `sweep` does.
        EngineError: The engine is missing, loses workers again and again, or a job
            failed.
        Stopped: There was a signal.
    """
    if engine.engine.kind == "slurm":
        from trainer.training.sweep_on_slurm import sweep_on_slurm

        sweep_on_slurm(runs, memory, engine, settings, sweep_folder)
        return
    from trainer.training.sweep_on_ray import sweep_on_ray

    sweep_on_ray(runs, memory, engine, settings, sweep_folder)
