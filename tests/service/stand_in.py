"""A small HTTP server that answers as a test says, to be what no real service is: half
an answer, a web page, a newer service.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from schemas.service import RunEvent, ServiceRun
from tests.service.support import spec


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Said(NamedTuple):
    """What is answered; `cut` closes the connection before the promised end."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = {}
    cut: bool = False


Answer = Callable[[Asked], Said]


class StandIn:
    """A server at `url`, which keeps what it was asked."""

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                headers = {key.lower(): value for key, value in self.headers.items()}
                one = Asked(self.command, self.path, headers, body)
                outer.asked.append(one)
                self.send(answer(one))

            def send(self, said: Said) -> None:
                data = said.body
                kind = "text/html" if isinstance(data, str) else "application/json"
                if not isinstance(data, (str, bytes)):
                    data = json.dumps(data)
                data = data.encode() if isinstance(data, str) else data
                self.send_response(said.status)
                given = {"content-type": kind, **said.headers}
                for key, value in given.items():
                    self.send_header(key, value)
                if said.cut or "text/event-stream" not in given["content-type"]:
                    self.send_header("Content-Length", str(len(data) + said.cut))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def answering(answer: Answer) -> Iterator[StandIn]:
    """A stand-in that answers as a function says."""
    server = StandIn(answer)
    try:
        yield server
    finally:
        server.close()


def run_json(name: str = "a", **more: Any) -> dict[str, Any]:
    """A run as the service tells of it."""
    run = ServiceRun.model_validate(
        {
            "id": f"id-{name}",
            "name": name,
            "url": f"/runs/{name}",
            "sweep": None,
            "user": "ann",
            "state": "queued",
            "priority": 0,
            "created": "2026-01-02T03:04:05+00:00",
            "started": None,
            "ended": None,
            "attempts": 0,
            "slot": None,
            "shares_with": [],
            "waits_for": None,
            "error": None,
            "published": None,
            "spec": spec(),
            "memory_bytes": 100,
            "progress": None,
            **more,
        }
    )
    return run.model_dump(mode="json")


def events_text(*kinds: str, first: int = 1) -> bytes:
    """Events of these kinds, as they are sent."""
    lines = []
    for number, kind in enumerate(kinds, first):
        event = RunEvent.model_validate(
            {
                "id": number,
                "run": "a",
                "time": "2026-01-02T03:04:05+00:00",
                "kind": kind,
                "text": kind,
            }
        )
        lines.append(
            f"id: {number}\nevent: {kind}\ndata: {event.model_dump_json()}\n\n"
        )
    return "".join(lines).encode()


EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
