"""HTTP connections on which a client cannot be slow for ever.

uvicorn waits without end for a request's head, and for a client to take its answer.
Here either has its time, after which the connection is closed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for the head of a request to come
TAKE_S = 60.0  # for what was sent to be taken


class PatientProtocol(H11Protocol):
    """A connection of uvicorn's with two clocks more."""

    head_s = HEAD_S
    take_s = TAKE_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of the first request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_s, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Take what came; wait on for a head that is not whole yet."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock("_head")
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.head_s, self._give_up)

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent."""
        super().pause_writing()
        self._stop_clock("_taking")
        self._taking = self.loop.call_later(self.take_s, self._give_up)

    def resume_writing(self) -> None:
        """Go on: it was taken."""
        super().resume_writing()
        self._stop_clock("_taking")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        self._stop_clock("_head")
        self._stop_clock("_taking")
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self.transport.abort()

    def _stop_clock(self, name: str) -> None:
        clock: asyncio.TimerHandle | None = getattr(self, name)
        if clock is not None:
            clock.cancel()
            setattr(self, name, None)
