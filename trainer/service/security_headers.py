"""What every answer tells a browser not to do, and the line of the log for each."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import MutableHeaders

from trainer.service.limits import App, Message, Receive, Scope, Send
from trainer.service.metrics import Metrics
from trainer.service.problems import problem

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_YEAR_S = 31_536_000
log = logging.getLogger("trainer.service")


class SecurityHeaders:
    """The layer around all others: headers, the log's line, and figures."""

    def __init__(self, app: App, metrics: Metrics, *, tls: bool) -> None:
        """Lay it around an app.

        Args:
            app: The app.
            metrics: Where requests are counted.
            tls: Whether browsers are told to come by TLS only, from now on.
        """
        self._app = app
        self._metrics = metrics
        self._tls = tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, and add to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0  # nothing is answered yet

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        except Exception:  # whatever it is, the next request is answered
            log.exception("an error of the service itself")
            if status:
                raise  # half an answer is cut off
            # What it says may be of files and keys: only the log has it.
            told = problem(500, "an error of the service itself; its log says more")
            await told(scope, receive, with_headers)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.add(_method(scope), route, status, seconds)
            log.info(
                "%s %s %d %.0f ms", _method(scope), _path(scope), status, seconds * 1000
            )

    def _add(self, headers: MutableHeaders) -> None:
        """Add headers to an answer; its own policy, if it has one, is left to it."""
        for name, value in HEADERS.items():
            headers[name] = value
        is_page = headers.get("content-type", "").startswith("text/html")
        policy = PAGE_POLICY if is_page else DATA_POLICY
        headers.setdefault("Content-Security-Policy", policy)
        headers.setdefault("Cache-Control", "no-store")
        if self._tls:
            headers["Strict-Transport-Security"] = f"max-age={_YEAR_S}"


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in {"GET", "HEAD", "POST", "DELETE"} else "other"


def _path(scope: Scope) -> str:
    """Return the path of a request as it came, without its query."""
    raw: Any = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return ascii(raw.partition(b"?")[0][:300].decode("latin-1"))[1:-1]
