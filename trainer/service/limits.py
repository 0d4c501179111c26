"""What is refused before any route sees it: too large, too slow, too often, too deep.

An ASGI layer. The body of a request is read whole here, up to a limit that counts bytes
that came and not what a header promises.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from actstore.errors import SpecError
from actstore.format.json_records import check_depth
from trainer.service.problems import problem
from trainer.service.rates import Rate, RateLimit

MOST_BODY_BYTES = 1 << 20
BODY_S = 20.0  # how long a body may take to come
# Of an address: many users may sit behind one.
ADDRESS_RATE = Rate(500, 1000)
WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}
KNOWN_METHODS = {"GET", "HEAD", *WITH_BODY}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Limits:
    """The layer."""

    def __init__(
        self,
        app: App,
        hosts: Sequence[str] | None = None,
    ) -> None:
        """Lay it around an app.

        Args:
            app: The app.
            hosts: What `Host` may say; None: anything. On the loopback it is this
                machine's names only: a page from elsewhere, whose name was made to lead
                here, says its own.
        """
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)
        self._addresses = RateLimit(ADDRESS_RATE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] in WITH_BODY:
            body = await _body(scope, receive)
            if isinstance(body, bytes):
                refusal = _unreadable(scope, body)
                receive = _again(body, receive)
            else:
                refusal = body
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Any:
        """Return the answer to a request that its head alone shows to be refused."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and host not in self._hosts:
            return problem(403, f"this service is at {min(self._hosts)} only")
        if scope["method"] not in KNOWN_METHODS:
            return problem(405, "this method is not known here")
        address = address_of(scope)
        wait_s = self._addresses.wait_s(address)
        if wait_s:
            return problem(429, "too many requests from this address", wait_s)
        return None


def address_of(scope: Scope) -> str:
    """Return the address that a request is from; of IPv6, the network of one user."""
    client = scope.get("client")
    text = client[0] if client else ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return str(text)
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return text


async def _body(scope: Scope, receive: Receive) -> Any:
    """Return a request's body, or the answer where it is too large or too slow."""
    headers = dict(scope["headers"])
    promised = headers.get(b"content-length", b"0")
    if promised.isdigit() and int(promised[:20]) > MOST_BODY_BYTES:
        return _too_large()
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return problem(400, "the request ended early")
                part = message.get("body", b"")
                size += len(part)
                if size > MOST_BODY_BYTES:
                    return _too_large()
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        return problem(408, f"the body did not come within {BODY_S:g} seconds")


def _too_large() -> Any:
    return problem(413, f"the body has more than {MOST_BODY_BYTES:,} bytes")


def _unreadable(scope: Scope, body: bytes) -> Any:
    """Return the answer to JSON that is nested too deeply to be parsed, or None."""
    kind = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    if "json" not in kind.lower():
        return None
    try:
        check_depth(body, "the body", SpecError)
    except SpecError as error:
        return problem(422, str(error))
    return None


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what hands on a body that was read, and then what else comes."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again
