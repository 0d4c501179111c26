"""Serves the explorer's page on this machine alone, from its Parquet files."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from actstore.errors import ActstoreError, SpecError
from trainer.explorer.latent_json import chunk_json, index_json
from trainer.explorer.page_file import page_start
from trainer.explorer.read_explorer import Explorer

HOST = "127.0.0.1"
_CHUNK = re.compile(r"/chunk/(0|[1-9][0-9]{0,8})")


class _Answer(NamedTuple):
    """The answer to a path."""

    status: HTTPStatus
    kind: str
    data: bytes


_MISSING = _Answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here\n")


class ExplorerServer(ThreadingHTTPServer):
    """A server of one explorer, on 127.0.0.1 only.

    Attributes:
        explorer: The files that it serves.
    """

    daemon_threads = True

    def __init__(self, explorer: Explorer, port: int = 0) -> None:
        """Take a port.

        Args:
            explorer: The files.
            port: The port; 0 for any that is free.

        Raises:
            SpecError: The port is taken, or may not be used.
        """
        self.explorer = explorer
        self._lock = threading.Lock()
        page = page_start(explorer) + "</body>\n</html>\n"
        self._page = page.encode()
        self._index = index_json(explorer)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise SpecError(
                f"--port {port}: it cannot be used ({error}); choose another, or leave"
                " it out"
            ) from None

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that browsers of this machine use; no other name is answered.

        A page from elsewhere whose name was made to mean 127.0.0.1 gives its own.
        """
        return (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")

    def answer(self, path: str) -> _Answer:
        """Return what a path is answered with: one of a few, and no file's name."""
        if path == "/":
            return _Answer(HTTPStatus.OK, "text/html; charset=utf-8", self._page)
        if path == "/index":
            return _Answer(HTTPStatus.OK, "application/octet-stream", self._index)
        match = _CHUNK.fullmatch(path)
        if match is None or int(match[1]) >= self.explorer.n_groups:
            return _MISSING
        try:
            # Parquet's readers are not for several threads at once.
            with self._lock:
                data = chunk_json(self.explorer, int(match[1]))
        except ActstoreError as error:
            text = f"{error}\n".encode()
            return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", text)
        return _Answer(HTTPStatus.OK, "application/octet-stream", data)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET, and nothing else."""

    server: ExplorerServer
    server_version = "explorer"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer a request of one of the known paths, under one of our own names."""
        if self.headers.get("Host") not in self.server.hosts:
            text = b"this page is at 127.0.0.1 only\n"
            self._send(_Answer(HTTPStatus.FORBIDDEN, "text/plain", text))
            return
        self._send(self.server.answer(self.path))

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(answer.data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the terminal is the user's."""


def serve(
    explorer: Explorer,
    port: int = 0,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve an explorer until the process is told to stop.

    Args:
        explorer: The files.
        port: The port; 0 for any that is free.
        started: Is told the page's address once it can be opened.
    """
    server = ExplorerServer(explorer, port)
    try:
        if started is not None:
            started(server.url)
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
