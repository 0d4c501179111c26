"""A run of the queue, as the service tells of it."""

from __future__ import annotations

from schemas.service import ServiceRun
from trainer.queue.queue_records import QueuedRun


def shown_run(run: QueuedRun, waits_for: str | None) -> ServiceRun:
    """Return a run as it is told.

    Args:
        run: The run.
        waits_for: Why it does not begin yet; None where it is not queued.
    """
    return ServiceRun(
        id=run.id,
        name=run.name,
        url=run.url,
        sweep=run.sweep,
        user=run.user,
        state=run.state,
        priority=run.priority,
        created=run.created,
        started=run.started,
        ended=run.ended,
        attempts=run.attempts,
        slot=run.slot,
        shares_with=list(run.shares_with),
        waits_for=waits_for,
        error=run.error,
        published=run.published,
        spec=run.spec,
        memory_bytes=run.memory_bytes,
        progress=run.progress,
    )
