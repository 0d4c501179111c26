"""Gives a harvest to the engine that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actstore.engines.engine_option import EngineOptions
from actstore.harvesting.progress import Report
from actstore.store.store import Store
from schemas.harvest import HarvestSpec


def harvest_on_engine(
    spec: HarvestSpec,
    out: str,
    engine: EngineOptions,
    *,
    device: str,
    options: Mapping[str, Any] | None,
    report: Report,
) -> Store:
    """Harvest into a new store on the machines of an engine; return the store.

    Args:
        spec: What is harvested.
        out: Where the store goes, which every machine has to see.
        engine: The engine, and how work is placed.
        device: Where each worker runs the model: `cpu` or `cuda`.
        options: For the file system of `out`.
        report: Is given the progress of all machines together.

    Raises:
        SpecError, SiteError, ModelError, CorpusError, NumericsError, StoreError: As
            `harvest` does.
        EngineError: The engine is missing, or loses workers again and again.
    """
    if engine.engine.kind == "slurm":
        from actstore.harvesting.harvest_on_slurm import harvest_on_slurm

        return harvest_on_slurm(
            spec, out, engine, device=device, options=options, report=report
        )
    from actstore.harvesting.harvest_on_ray import harvest_on_ray

    return harvest_on_ray(
        spec, out, engine, device=device, options=options, report=report
    )
