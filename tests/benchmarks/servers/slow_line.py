"""A line with latency and a bandwidth limit, in front of a server on the loopback:
`python -m tests.benchmarks.servers.slow_line PORT [--delay 0.01] [--rate 2e9]`.

It stands for `tc netem`, which not every kernel has. Every byte comes `delay` seconds
late in either direction (a new connection's first byte three times, as a handshake
takes a round trip), and all connections share `rate` bits per second in each direction.
TCP's slow start and losses are not modelled. The port that it listens on is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

HIGH_WATER = 4 << 20  # bytes on their way that a connection may have


class Line:
    """When bytes arrive that are sent now, in turn with those of other connections."""

    def __init__(self, delay: float, rate: float | None) -> None:
        self.delay = delay
        self.rate = rate
        self._free = 0.0

    def arrival(self, now: float, n_bytes: int) -> float:
        if self.rate is not None:
            self._free = max(self._free, now) + 8 * n_bytes / self.rate
            now = self._free
        return now + self.delay


class End(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at the other end, later."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None
        self.began = 0.0
        self._on_the_way: collections.deque[bytes] = collections.deque()
        self._bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.began = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        # The handshake's round trip.
        now = max(loop.time(), self.began + 2 * self.line.delay)
        self._on_the_way.append(data)
        self._bytes += len(data)
        if self._bytes > HIGH_WATER and self.transport is not None:
            self.transport.pause_reading()
        loop.call_at(self.line.arrival(now, len(data)), self._arrive)

    def _arrive(self) -> None:
        # Those of one connection arrive in order, whichever call comes first.
        data = self._on_the_way.popleft()
        self._bytes -= len(data)
        transport = self.other.transport if self.other is not None else None
        if transport is not None and not transport.is_closing():
            transport.write(data)
        if self._bytes <= HIGH_WATER and self.transport is not None:
            self.transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        if self.other is None:
            return
        other = self.other
        loop = asyncio.get_running_loop()

        def close() -> None:
            if other.transport is not None:
                other.transport.close()

        loop.call_at(self.line.arrival(loop.time(), 0) + 0.001, close)


class Entrance(End):
    """The client's end; makes the connection to the server."""

    def __init__(self, port: int, up: Line, down: Line) -> None:
        super().__init__(up)
        self._port = port
        self._down = down

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast("asyncio.Transport", transport).pause_reading()
        self._task = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(
            lambda: End(self._down), "127.0.0.1", self._port
        )
        server.other, self.other = self, server
        if self.transport is not None:
            self.transport.resume_reading()


@contextlib.contextmanager
def slow_line(delay: float, rate: float) -> Iterator[None]:
    """Put a slow line before the server that the environment names."""
    port = os.environ["AWS_ENDPOINT_URL"].rstrip("/").rsplit(":", 1)[1]
    words = [sys.executable, "-m", "tests.benchmarks.servers.slow_line", port]
    words += ["--delay", str(delay), "--rate", str(rate)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        entrance = running.stdout.readline().strip()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{entrance}"
        try:
            yield
        finally:
            running.terminate()


async def serve(port: int, delay: float, rate: float | None) -> None:
    """Listen until the process is ended."""
    loop = asyncio.get_running_loop()
    up, down = Line(delay, rate), Line(delay, rate)
    server = await loop.create_server(
        lambda: Entrance(port, up, down), "127.0.0.1", 0, backlog=1024
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="the server's")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds, each way")
    parser.add_argument("--rate", type=float, help="bits per second")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.delay, options.rate))


if __name__ == "__main__":
    main()
