"""Requests that come by way of a proxy, which has TLS: only it may ask."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

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

    Other headers of that kind, and other addresses than the proxy's, count for nothing.
    """

    def __init__(self, app: App, proxies: Sequence[str]) -> None:
        """Lay it around an app.

        Args:
            app: The app.
            proxies: Addresses and networks of the proxies.
        """
        self._open = app
        self._app = ProxyHeadersMiddleware(app, list(proxies))  # type: ignore[arg-type]
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what comes from the proxy."""
        if scope["type"] == "lifespan":
            await self._open(scope, receive, send)
            return
        if not self._is_proxy((scope.get("client") or ("",))[0]):
            if scope.get("path") in OPEN_PATHS:
                await self._open(scope, receive, send)
                return
            refusal = problem(403, "this service answers by way of its proxy only")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)  # type: ignore[arg-type]

    def _is_proxy(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


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
