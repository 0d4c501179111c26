"""What all routes of the service share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from trainer.service.access import Access
from trainer.service.event_feed import EventFeed
from trainer.service.metrics import Metrics
from trainer.service.service import Service
from trainer.service.tokens import User
from trainer.service.work_pools import Answers, WorkPools


@dataclass(frozen=True, slots=True)
class Context:
    """What all routes share; `request.app.state.context` has it.

    Attributes:
        service: The service.
        access: The door: tokens and sessions.
        pools: Threads.
        answers: Answers that many ask for.
        feed: Events as they happen.
        metrics: Figures.
        secure_cookies: Whether browsers are told to send cookies by TLS only.
    """

    service: Service
    access: Access
    pools: WorkPools
    answers: Answers
    feed: EventFeed
    metrics: Metrics
    secure_cookies: bool


async def context_of(request: Request) -> Context:
    """Return what all routes share; for `Depends`."""
    context: Context = request.app.state.context
    return context


async def reader(request: Request) -> User:
    """Return who asks, where it may read; for `Depends`.

    Raises:
        RefusedError: Nobody whom the service knows, or too often.
    """
    return (await context_of(request)).access.user(request)


async def submitter(request: Request) -> User:
    """Return who asks, where it may start and end runs; for `Depends`.

    Raises:
        RefusedError: As `reader`; or its role does not allow it.
    """
    return (await context_of(request)).access.submitter(request)
