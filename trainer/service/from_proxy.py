"""Requests that come by way of a proxy, which has TLS: only it may ask."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from actstore.errors import SpecError
from trainer.service.limits import App, Receive, Scope, Send
from trainer.service.problems import problem

# Where a proxy is that was not named: on this machine, or in a private network.
USUAL = (
    *("127.0.0.0/8", "::1/128"),
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
)
OPEN_PATHS = {"/health", "/ready"}  # which whoever watches the machine asks for


class FromProxy:
    """The layer that takes a request's address from the proxy's headers.

    What others have put into them counts for nothing: each proxy adds the address that
    asked it at the end, and what stands before it is the word of that address.
    """

    def __init__(self, app: App, proxies: Sequence[str]) -> None:
        """Lay it around an app.

        Args:
            app: The app.
            proxies: Addresses and networks of the proxies.
        """
        self._app = app
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]
        # In the usual networks users are as well: only the last address is known then.
        self._are_named = tuple(proxies) != USUAL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what comes from the proxy."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if self._is_proxy((scope.get("client") or ("",))[0]):
            scope = {**scope, **self._forwarded(scope["headers"])}
        elif scope.get("path") not in OPEN_PATHS:
            refusal = problem(403, "this service answers by way of its proxy only")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _forwarded(self, headers: Sequence[tuple[bytes, bytes]]) -> Scope:
        """Return what the proxy says of a request: who asked it, and how."""
        found: Scope = {}
        scheme = _values(headers, b"x-forwarded-proto")[-1:]
        if scheme and scheme[0] in {"http", "https"}:
            found["scheme"] = scheme[0]
        hops = [_host(text) for text in _values(headers, b"x-forwarded-for")]
        while len(hops) > 1 and self._are_named and self._is_proxy(hops[-1]):
            hops.pop()
        if hops and hops[-1]:
            found["client"] = (hops[-1], 0)
        return found

    def _is_proxy(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Return all values of a header, which may come in several lines."""
    lines = (value.decode("latin-1") for key, value in headers if key == name)
    return [part.strip() for line in lines for part in line.split(",")]


def _host(text: str) -> str:
    """Return the address of `address`, `address:port` or `[address]:port`; else ""."""
    bare = re.fullmatch(r"\[([^]]*)\](?::\d+)?|([^:]*):\d+", text)
    host = text if bare is None else bare[1] or bare[2]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def checked_proxies(proxies: Sequence[str]) -> tuple[str, ...]:
    """Return addresses and networks of proxies; the usual ones where none is given.

    Raises:
        SpecError: One is neither.
    """
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise SpecError(
                f"--proxy {proxy}: wanted an address or a network, such as 10.0.0.7 or"
                " 10.0.0.0/24"
            ) from None
    return tuple(proxies) or USUAL
