"""Removes this machine's paths from what leaves it: only the names of things stay."""

from __future__ import annotations

from pathlib import PurePosixPath

from schemas.harvest import HarvestSpec
from schemas.records import EvalRecord, RunRecord

# The beginnings of the names of local files and folders.
_LOCAL = ("/", "~", "file:", ".")


def name(url: str) -> str:
    """Return the last part of a local path; names on the hub and other URLs stay."""
    if not url.startswith(_LOCAL):
        return url
    return PurePosixPath(url).name or url


def record(run: RunRecord) -> RunRecord:
    """Return a run's record for others; its content id still tells the store."""
    update = {
        "store": name(run.store),
        "store_path": None,
        "model": name(run.model),
    }
    return run.model_copy(update=update)


def evaluation(of_run: EvalRecord) -> EvalRecord:
    """Return a run's evaluation for others."""
    update = {"run": name(of_run.run), "store": name(of_run.store)}
    return of_run.model_copy(update=update)


def harvest(spec: HarvestSpec) -> HarvestSpec:
    """Return a store's spec for others."""
    model = spec.model.model_copy(update={"name": name(spec.model.name)})
    corpus = spec.corpus.model_copy(update={"name": name(spec.corpus.name)})
    return spec.model_copy(update={"model": model, "corpus": corpus})
