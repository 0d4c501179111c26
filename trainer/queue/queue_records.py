"""What goes into the queue and comes out of it."""

from __future__ import annotations

import functools
import sqlite3
from typing import Literal, NamedTuple

from schemas.service import EventKind, RunEvent, RunProgress, RunState
from schemas.train import TrainSpec

Beat = Literal["go on", "stop", "lost"]
"""The answer to a heartbeat: train on, save and end, or end at once."""


class NewRun(NamedTuple):
    """A run to be submitted."""

    name: str
    """Its folder's, below the service's."""
    url: str
    """Its folder."""
    spec: TrainSpec
    store_url: str
    """Where its store lies."""
    memory_bytes: int
    """What it takes if it is trained alone."""
    rows: int
    """Rows that it trains on."""
    state_bytes: int | None = None
    """How much of that is its own in a shared pass too: weights, gradients, moments.

    None: all of it.
    """


class QueuedRun(NamedTuple):
    """A run as the queue has it."""

    number: int
    """Rises in the order of submission."""
    id: str
    name: str
    url: str
    sweep: str | None
    user: str
    state: RunState
    priority: int
    created: str
    started: str | None
    ended: str | None
    attempts: int
    slot: str | None
    shares_with: tuple[str, ...]
    cancelling: bool
    """Whether it is trained still, and asked to end."""
    alone: bool
    """Whether it must not share a pass, since one that it shared has failed."""
    error: str | None
    published: str | None
    spec: TrainSpec
    store_url: str
    memory_bytes: int
    rows: int
    progress: RunProgress | None


class WaitingRun(NamedTuple):
    """A queued run, with what decides when it begins."""

    number: int
    id: str
    user: str
    priority: int
    memory_bytes: int
    """What it takes alone."""
    state_bytes: int
    """How much of that is its own in a shared pass too."""
    alone: bool


class Lease(NamedTuple):
    """A pass's hold on a slot."""

    id: str
    slot: str
    runs: tuple[str, ...]
    """Ids of the runs of the pass."""
    pid: int | None
    """The process that trains it; None until it has begun."""
    process_start: str | None
    """Tells the process from a later one of the same number."""
    this_boot: bool
    """Whether it began since the machine did."""


class Outcome(NamedTuple):
    """How a pass ended for one of its runs.

    *completed*: it is finished in its folder. *failed*: it cannot be trained.
    *stopped*: it was asked to end, and was saved. *apart*: it was in a pass that failed
    for one of its runs, nobody knows which. *lost*: its process ended without a word.
    """

    kind: Literal["completed", "failed", "stopped", "apart", "lost"]
    text: str = ""


class Page(NamedTuple):
    """Some of the runs, newest first."""

    runs: list[QueuedRun]
    total: int
    """How many fit the filter."""
    next: str | None
    """Give it as `after` for the next page."""


def queued_run(row: sqlite3.Row, pass_ids: tuple[str, ...]) -> QueuedRun:
    """Return a run from its row.

    Args:
        row: The row, with its slot.
        pass_ids: All runs of its pass.
    """
    progress = row["progress"]
    return QueuedRun(
        number=row["number"],
        id=row["id"],
        name=row["name"],
        url=row["url"],
        sweep=row["sweep"],
        user=row["user"],
        state=row["state"],
        priority=row["priority"],
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        attempts=row["attempts"],
        slot=row["slot"],
        shares_with=tuple(other for other in pass_ids if other != row["id"]),
        cancelling=row["cancelling"] is not None,
        alone=bool(row["alone"]),
        error=row["error"],
        published=row["published"],
        spec=_spec(row["spec"]),
        store_url=row["store_url"],
        memory_bytes=row["memory_bytes"],
        rows=row["rows"],
        progress=RunProgress.model_validate_json(progress) if progress else None,
    )


@functools.lru_cache(4096)
def _spec(text: str) -> TrainSpec:
    """Return a spec; lists ask for the same ones again and again."""
    return TrainSpec.model_validate_json(text)


def run_event(row: sqlite3.Row) -> RunEvent:
    """Return an event from its row."""
    kind: EventKind = row["kind"]
    progress = row["progress"]
    return RunEvent(
        id=row["id"],
        run=row["run"],
        time=row["time"],
        kind=kind,
        text=row["text"],
        progress=RunProgress.model_validate_json(progress) if progress else None,
    )
