"""A harvest by jobs of Slurm's: each is a worker with its share of the units."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from actstore.engines.engine_option import EngineOptions
from actstore.engines.slurm_engine import Task, run_jobs
from actstore.engines.slurm_folder import JobFolder, folder_beside
from actstore.errors import SpecError
from actstore.format.storage import Storage
from actstore.harvesting.progress import Progress, Report
from actstore.harvesting.worker_share import Share, check_shared
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from schemas.harvest import HarvestSpec
from schemas.slurm import HarvestJob, JobWork

KEPT = "units that are committed are kept; the same command goes on"


def harvest_on_slurm(
    spec: HarvestSpec,
    out: str | os.PathLike[str],
    engine: EngineOptions,
    *,
    device: str,
    options: Mapping[str, Any] | None,
    report: Report,
) -> Store:
    """Harvest into a new store by as many jobs as there are to be workers.

    Args:
        spec: What is harvested.
        out: Where the store goes, which all nodes have to see.
        engine: Slurm or a stand-in for it, its options, and how many workers.
        device: Where each runs the model: `cpu` or `cuda`.
        options: Have to be empty: they may be secrets, which no file is to have.
        report: Is given the progress of all jobs together.

    Raises:
        SpecError: The number of workers is missing, or there are options.
        EngineError: Slurm is not there or refuses, or a job failed.
        StorageError: Workers cannot share a store there.
        UnfinishedError: Jobs ended well, and yet units are missing.
        Stopped: A signal came; jobs that were submitted go on.
    """
    n_workers = engine.workers
    if n_workers is None:
        raise SpecError(
            "--engine slurm: wanted --workers N, how many jobs share the harvest"
        )
    if options:
        raise SpecError(
            "options: Slurm's jobs take them from the variable ACTSTORE_STORAGE_OPTIONS"
            " and from those of the store's own kind, since they may be secrets; set"
            " them there"
        )
    storage = Storage(out)
    check_shared(storage, Share(0, n_workers))
    url = str(storage.local.absolute()) if storage.local else storage.url
    works = _works(spec, url, n_workers, device)
    task = Task(
        what=json.dumps([url, spec.to_json()]),
        function="actstore.harvesting.harvest_job:harvest_share",
        works=works,
        short_name="harvest",
        at_once=None,
        gpu=device != "cpu",
        kept=KEPT,
    )
    folder = JobFolder(folder_beside(storage.local, _name(url)))

    def look(told: Sequence[str | None]) -> None:
        report(combined(told, spec))

    run_jobs(task, engine, folder, look, _say)
    return open_store(out)


def _works(spec: HarvestSpec, url: str, n_workers: int, device: str) -> list[JobWork]:
    works = []
    for number in range(1, n_workers + 1):
        worker = f"{number}/{n_workers}" if n_workers > 1 else None
        job = HarvestJob(spec=spec, out=url, worker=worker, device=device)
        works.append(JobWork(name=f"worker {number}/{n_workers}", text=job.to_json()))
    return works


def _name(url: str) -> str:
    """Return a name for the jobs' folder, where it cannot lie beside the store."""
    return "".join(letter if letter.isalnum() else "-" for letter in url)[:200]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def combined(told: Sequence[str | None], spec: HarvestSpec) -> Progress:
    """Return the progress of all workers together.

    Args:
        told: What each has told; None for one that has not begun.
        spec: What they harvest.
    """
    parts = [Progress(*json.loads(text)) for text in told if text is not None]
    harvesting = [part for part in parts if part.n_tokens]
    if not harvesting:
        stage = parts[0].stage if parts else "waiting for Slurm's jobs"
        return Progress(stage)
    n_tokens = sum(part.n_tokens for part in harvesting)
    if len(harvesting) < len(told):
        # What the others will do is not known yet, but for the sum.
        n_tokens = max(n_tokens, spec.tokens)
    return Progress(
        stage=f"harvesting ({len(harvesting)} of {len(told)} jobs have begun)",
        tokens=sum(part.tokens for part in harvesting),
        n_tokens=n_tokens,
        units=sum(part.units for part in harvesting),
        n_units=sum(part.n_units for part in harvesting),
        in_flight=sum(part.in_flight for part in harvesting),
        resumed=sum(part.resumed for part in harvesting),
        bytes=sum(part.bytes for part in harvesting),
    )
