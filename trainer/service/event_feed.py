"""Events of runs as they happen, for any number of streams from one look at the queue.

A stream reads its run's events from the queue, in order and without gaps: those that it
has missed, and then new ones each time it is told that there are some.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from schemas.service import ENDED, RunEvent
from trainer.errors import ServiceError
from trainer.service.access import RefusedError
from trainer.service.service import Service
from trainer.service.tokens import User
from trainer.service.work_pools import WorkPools

LOOK_S = 0.5
HEARTBEAT_S = 15.0
MOST_OF_TOKEN, MOST = 16, 1000  # open streams
BATCH = 1000  # events that are read at once


class EventFeed:
    """What looks at the queue for all streams."""

    def __init__(self, service: Service, pools: WorkPools) -> None:
        self._service = service
        self._pools = pools
        self._streams: dict[asyncio.Event, str] = {}
        self._of_token: Counter[str] = Counter()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def n_streams(self) -> int:
        """How many streams are open."""
        return self._of_token.total()

    @contextlib.contextmanager
    def place(self, user: User) -> Iterator[None]:
        """Hold a place for one more stream of a token.

        Raises:
            RefusedError: It has too many, or there are too many in all (429).
        """
        if self._of_token[user.token] >= MOST_OF_TOKEN or self.n_streams >= MOST:
            raise RefusedError(429, "too many open streams of events", HEARTBEAT_S)
        self._of_token[user.token] += 1
        try:
            yield
        finally:
            self._of_token[user.token] -= 1
            if not self._of_token[user.token]:
                del self._of_token[user.token]

    async def events(
        self, run_id: str, after: int, *, follow: bool
    ) -> AsyncIterator[RunEvent | None]:
        """Yield the events of a run behind `after`; None now and then where none comes.

        Args:
            run_id: The run.
            after: Id of the last event that is known.
            follow: Whether to wait for more until the run has ended.
        """
        is_new = asyncio.Event()
        self._streams[is_new] = run_id
        try:
            while True:
                is_new.clear()
                if follow:
                    # Before the queue is read: what comes after that is told.
                    await self._keep_looking()
                # Looked at first: what ended it is among the events then.
                last = not follow or self._closed or await self._has_ended(run_id)
                async for event in self._known(run_id, after):
                    after = event.id
                    yield event
                if last:
                    return
                if not await self._waited(is_new):
                    yield None
        finally:
            del self._streams[is_new]

    async def close(self) -> None:
        """End all streams."""
        self._closed = True
        for is_new in self._streams:
            is_new.set()
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _known(self, run_id: str, after: int) -> AsyncIterator[RunEvent]:
        """Yield the events behind `after` that are in the queue now."""
        while True:
            events = await self._pools.quick(self._service.events, after, run_id, BATCH)
            for event in events:
                yield event
            if len(events) < BATCH:
                return
            after = events[-1].id

    async def _waited(self, is_new: asyncio.Event) -> bool:
        """Wait for new events; return whether there are some."""
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await is_new.wait()
        except TimeoutError:
            return False
        return True

    async def _keep_looking(self) -> None:
        """Begin to look for new events, unless that is done already."""
        if self._is_looking():
            return
        last = await self._pools.quick(self._service.last_event)
        # Another stream may have begun meanwhile.
        if not self._is_looking():
            self._looking = asyncio.create_task(self._look(last))

    def _is_looking(self) -> bool:
        return self._looking is not None and not self._looking.done()

    async def _has_ended(self, run_id: str) -> bool:
        run = await self._pools.quick(self._service.queue.run, run_id)
        return run.state in ENDED

    async def _look(self, last: int) -> None:
        """Look for new events as long as there are streams, and tell the streams."""
        while self._streams:
            try:
                events = await self._pools.quick(
                    self._service.events, last, None, BATCH
                )
            except ServiceError:
                # The streams ask themselves, and say so.
                events = []
            runs = {event.run for event in events}
            for is_new, run_id in self._streams.items():
                if run_id in runs:
                    is_new.set()
            if events:
                last = events[-1].id
            if len(events) < BATCH:
                await asyncio.sleep(LOOK_S)
