"""A proxy before an S3 server that makes requests fail, as networks and servers do.

Which request fails, and how, follows from a seed and the number of the request, or from
a rule of the test. It listens on the loopback only.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message><RequestId>r1</RequestId></Error>'
# fault: status, code and message of the answer
ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error."),
    "502": (502, "", ""),
    "404": (404, "", ""),
    "503": (503, "ServiceUnavailable", "Please try again."),
    "429": (429, "TooManyRequests", "Too many."),
    "SlowDown": (503, "SlowDown", "Please reduce your request rate."),
    "skew": (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "other region": (400, "AuthorizationHeaderMalformed", "The region is wrong."),
    "redirect": (301, "PermanentRedirect", "Address the bucket by its endpoint."),
    "no key": (403, "InvalidAccessKeyId", "The key does not exist in our records."),
    "bad request": (400, "InvalidArgument", "Header is not supported."),
    "no condition": (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
}  # fmt: skip
# Those that a client gets over by asking again.
TRANSIENT = ("500", "502", "503", "429", "SlowDown", "timeout", "reset", "reset after", "truncated", "stalled")  # fmt: skip
HOLD = 30.0  # seconds for which an answer that times out is held back, at most


class Request(NamedTuple):
    """What a rule decides by.

    Attributes:
        number: Which request of the proxy it is, from 0.
        token: The session token that it was signed with, or "".
    """

    number: int
    method: str
    path: str
    token: str
    headers: dict[str, str]

    @property
    def is_create(self) -> bool:
        return "if-none-match" in self.headers


Rule = Callable[[Request], str | None]
"""The fault that a request meets; None: none."""


def at_random(rate: float, seed: int, kinds: Sequence[str] = TRANSIENT) -> Rule:
    """Let a share of all requests fail, in one of several ways."""

    def rule(request: Request) -> str | None:
        draw = random.Random(f"{seed} {request.number}")
        return draw.choice(kinds) if draw.random() < rate else None

    return rule


class Proxy:
    """The proxy while it runs.

    Attributes:
        url: Where it listens.
        faults: How many requests have met each fault.
        requests: How many there were.
        lag: Objects are missing from listings for so many listings after they came.
    """

    def __init__(self, upstream: str, rule: Rule) -> None:
        self.upstream = urlsplit(upstream)
        self.rule = rule
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.seen: list[Request] = []
        self.lag = 0
        self._age: dict[str, int] = {}
        self._lock = threading.Lock()
        self.ended = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        """Number a request, and say which fault it meets."""
        token = headers.get("x-amz-security-token", "")
        with self._lock:
            request = Request(self.requests, method, path, token, headers)
            self.requests += 1
            self.seen.append(request)
            fault = self.rule(request)
            if fault is not None:
                self.faults[fault] += 1
            return fault

    def came(self, path: str) -> None:
        """Note that an object was written."""
        with self._lock:
            self._age[unquote(urlsplit(path).path).lstrip("/").split("/", 1)[-1]] = 0

    def without_young(self, listing: bytes) -> bytes:
        """Return a listing that lags: objects that came lately are not in it."""

        def kept(match: re.Match[bytes]) -> bytes:
            found = re.search(rb"<Key>(.*?)</Key>", match[0])
            key = unquote(found[1].decode()) if found else ""
            age = self._age.get(key, self.lag)
            return match[0] if age >= self.lag else b""

        with self._lock:
            changed = re.sub(
                rb"<Contents>.*?</Contents>", kept, listing, flags=re.DOTALL
            )
            for key in self._age:
                self._age[key] += 1
        return changed


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    # headers and body are sent in two writes: without this the second waits
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _any(self) -> None:
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.proxy.fault(self.command, self.path, headers)
        if fault == "signature":
            # So AWS answers: with all that was signed, a token among it.
            signed = "\n".join(f"{name}:{value}" for name, value in headers.items())
            message = "The request signature we calculated does not match."
            text = ERROR.format("SignatureDoesNotMatch", message)
            request = f"<CanonicalRequest>{signed}</CanonicalRequest></Error>"
            self._answer(403, [], text.replace("</Error>", request).encode())
            return
        if fault in ANSWERS:
            status, code, message = ANSWERS[fault]
            text = ERROR.format(code, message) if code else ""
            self._answer(status, [], text.encode())
            return
        if fault == "page":
            self._answer(200, [], b"<html><body><br>Please log in&nbsp;</body></html>")
            return
        if fault == "timeout":
            self.proxy.ended.wait(HOLD)
            self.close_connection = True
            return
        if fault == "reset":
            self._reset()
            return
        if fault == "condition ignored":
            headers.pop("if-none-match", None)
        status, answer_headers, answer = self._forward(headers, body)
        if fault == "reset after":
            self._reset()
            return
        if self.command == "PUT" and status == 200:
            self.proxy.came(self.path)
        if self.proxy.lag and "list-type=2" in self.path:
            answer = self.proxy.without_young(answer)
        self._answer(status, answer_headers, answer, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any  # noqa: N815

    def _forward(
        self, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = self.proxy.upstream
        connection = http.client.HTTPConnection(
            str(upstream.hostname), upstream.port, timeout=60
        )
        dropped = {"connection", "transfer-encoding", "expect", "content-length"}
        passed = {name: text for name, text in headers.items() if name not in dropped}
        if body or self.command in {"PUT", "POST"}:
            passed["content-length"] = str(len(body))
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, text in passed.items():
                connection.putheader(name, text)
            connection.endheaders(body)
            with connection.getresponse() as response:
                return response.status, response.getheaders(), response.read()

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        fault: str | None = None,
    ) -> None:
        self.send_response_only(status)
        own = {"connection", "transfer-encoding", "content-length", "keep-alive"}
        length = str(len(body))
        for name, text in headers:
            if name.lower() not in own:
                self.send_header(name, text)
            elif name.lower() == "content-length" and self.command == "HEAD":
                length = text
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in {"truncated", "stalled"}:
            self.wfile.write(body[: len(body) // 2])
            if fault == "stalled":
                self.proxy.ended.wait(HOLD)
            self.close_connection = True
            return
        self.wfile.write(body)

    def _reset(self) -> None:
        """End the connection as a machine does that has gone: without a word."""
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.close_connection = True
        self.connection.close()


@contextlib.contextmanager
def faulty(upstream: str, rule: Rule = lambda _: None) -> Iterator[Proxy]:
    """Run a proxy before a server for the length of a `with` block."""
    proxy = Proxy(upstream, rule)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
