"""The API's stream of a run's events, as browsers read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Annotated

from fastapi import APIRouter, Header, Response, Security
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from schemas.service import RunEvent
from trainer.service.api_answers import Reader, Shared, bearer, problems
from trainer.service.context import Context
from trainer.service.tokens import User

_EVENT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
event_api = APIRouter(tags=["runs"], dependencies=[Security(bearer)])


@event_api.get(
    "/runs/{run_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events; the data of each is a RunEvent",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "The run has ended, and there is nothing new"},
        **problems(404),
    },
)
async def events(
    run_id: str,
    shared: Shared,
    user: Reader,
    follow: bool = True,
    last_event_id: Annotated[
        str | None, Header(max_length=20, pattern=r"^[0-9]{1,18}$")
    ] = None,
) -> Response:
    """Stream the events of a run until it has ended.

    The stream goes on behind `Last-Event-ID`. With `follow=false` it ends after what is
    there already.
    """
    after = int(last_event_id or 0)
    found = await shared.pools.quick(shared.service.run, run_id)
    comes_again = last_event_id is not None
    if comes_again and found.ended is not None:
        new = await shared.pools.quick(shared.service.events, after, run_id, 1)
        if not new:
            # By this a browser knows that it need not come again.
            return Response(status_code=204)
    stream = _server_sent(shared, user, run_id, after, follow=follow)
    return _Stream(stream, shared.feed.place(user))


class _Stream(StreamingResponse):
    """An answer that holds a place, and gives it back however it ends."""

    def __init__(
        self, content: AsyncIterator[str], place: AbstractContextManager[None]
    ) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        with self._place:
            await super().__call__(scope, receive, send)


async def _server_sent(
    shared: Context, user: User, run_id: str, after: int, *, follow: bool
) -> AsyncIterator[str]:
    """Yield events as a browser reads them."""
    async for event in shared.feed.events(run_id, after, follow=follow):
        # A token that was revoked meanwhile is told nothing more.
        if shared.access.tokens.user_of_id(user.token) is None:
            return
        yield ": waiting\n\n" if event is None else _as_text(event)


def _as_text(event: RunEvent) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
