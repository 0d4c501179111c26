"""A run of the queue, as the service tells of it."""

from __future__ import annotations

from schemas.service import ServiceRun
from trainer.service.queue_records import QueuedRun


def shown_run(run: QueuedRun) -> ServiceRun:
    """Return a run as it is told."""
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
        waits_for=None,
        error=run.error,
        published=run.published,
        spec=run.spec,
        memory_bytes=run.memory_bytes,
        progress=run.progress,
    )
