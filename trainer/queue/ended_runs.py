"""Looks into runs' folders for whether they have ended: `sae.json` is there."""

from __future__ import annotations

from collections.abc import Iterable

from actstore.errors import StoreError
from actstore.format.storage import Storage
from trainer.queue.queue_records import Outcome, QueuedRun


def ended_runs(runs: Iterable[QueuedRun]) -> dict[str, Outcome]:
    """Return the outcome of those runs that are finished in their folders, by id.

    One whose folder cannot be read counts as unfinished: when it is its turn again, it
    is seen to be finished before anything is trained.
    """
    return {run.id: Outcome("completed") for run in runs if has_ended(run.url)}


def has_ended(url: str) -> bool:
    """Return whether a run is finished in its folder."""
    try:
        return Storage(url).exists("sae.json")
    except StoreError:
        return False
