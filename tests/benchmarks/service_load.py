"""The service under load: 200 clients on the loopback read, and a run is trained.

`python -m tests.benchmarks.service_load [--seconds 60] [--clients 200] [--runs 1000]`

The service is `trainer serve` in a process of its own, with so many runs in its queue.
Each client asks again about a second after it was answered, as a page does: for the
list, a run, its journal, the state. Every tenth follows the events of the run that is
trained instead, as the run's page does. First all ask so (*paced*); then a few ask without
a pause (*closed loop*), which is what the service can answer at most. The clients are a
process of their own on the same cores.

Lines of JSON: errors, the events that came to each follower, the median and the 99th percentile of each route in ms, beside
the wanted 250 ms; answers per second of the closed loop beside those of a bare uvicorn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from schemas.records import BenchRecord
from schemas.service import RunProgress
from tests.support import make_store
from trainer.queue.database import NAME
from trainer.queue.queue import Queue
from trainer.queue.queue_records import NewRun, Outcome
from trainer.service.tokens import Tokens
from trainer.training.train_spec import load_spec

WANTED_MS = 250.0
N_CLOSED = 8
ONE_FOLLOWS_OF = 10
JOURNAL_LINES = 200
BARE = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", lifespan="off",
            access_log=False)
"""


class Load(NamedTuple):
    """What was measured."""

    errors: int
    ms: dict[str, list[float]]
    """How long each answer took, by route."""
    seconds: float
    events: list[int]
    """How many events came to each follower."""

    @property
    def n(self) -> int:
        return sum(map(len, self.ms.values()))


class Connection:
    """A connection that is kept; a client that costs little, since it shares cores."""

    def __init__(self, port: int, tokens: Sequence[str], address: str) -> None:
        self._port = port
        self._address = address
        self._heads = itertools.cycle(
            f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
            for token in tokens
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> int:
        """Return the status of an answer whose body was read, too."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(self._address, 0)
            )
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\n{next(self._heads)}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        return int(head.split()[1])

    async def follow(self, path: str, end: float) -> int:
        """Return how many events came until the time was over.

        Raises:
            ValueError: The stream was refused, or ended before.
        """
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(self._address, 0)
        )
        try:
            writer.write(f"GET {path} HTTP/1.1\r\n{next(self._heads)}".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise ValueError(head)
            events = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(end - time.monotonic()):
                    while line := await reader.readline():
                        events += line.startswith(b"data: ")
                    raise ValueError("the stream has ended")
            return events
        finally:
            writer.close()

    async def close(self) -> None:
        """Close it; the next `get` opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None


def routes(runs: Sequence[str], chance: random.Random) -> tuple[str, str]:
    """Return a route, and a path of it, as pages ask for them."""
    run = chance.choice(runs)
    return chance.choice(
        [
            ("/runs", "/runs?limit=50"),
            ("/runs", f"/runs?state=queued&limit=50&text=run-{chance.randrange(9)}"),
            ("/runs/ID", f"/runs/{run}"),
            ("/runs/ID/journal", f"/runs/{run}/journal?after_step=0"),
            ("/state", "/state"),
        ]
    )


async def load(
    port: int,
    tokens: Sequence[Sequence[str]],
    runs: Sequence[str],
    seconds: float,
    pause_s: float,
    followed: str | None = None,
) -> Load:
    """Let clients ask until the time is over.

    Args:
        port: The service's.
        tokens: Those of each client, which it shows in turn: neither a token nor an
            address is to come too often.
        runs: Ids of the runs that are asked for.
        seconds: How long.
        pause_s: From an answer to the next request, on average.
        followed: The run whose events every tenth client follows; None: nobody does.
    """
    end = time.monotonic() + seconds
    ms: dict[str, list[float]] = defaultdict(list)
    errors = 0
    came: list[int] = []

    async def follower(number: int) -> None:
        nonlocal errors
        connection = Connection(port, tokens[number], f"127.0.1.{number + 1}")
        try:
            came.append(await connection.follow(f"/runs/{followed}/events", end))
        except (OSError, EOFError, ValueError):
            errors += 1

    async def client(number: int) -> None:
        nonlocal errors
        chance = random.Random(number)
        connection = Connection(port, tokens[number], f"127.0.1.{number + 1}")
        await asyncio.sleep(chance.random() * pause_s)
        while time.monotonic() < end:
            route, path = routes(runs, chance)
            began = time.monotonic()
            try:
                status = await connection.get(path)
            except (OSError, EOFError, ValueError):
                status = 0
                await connection.close()
            ms[route].append(1000 * (time.monotonic() - began))
            errors += status != 200
            if pause_s:
                await asyncio.sleep(pause_s * (0.5 + chance.random()))
        await connection.close()

    began = time.monotonic()
    follows = [
        followed is not None and i % ONE_FOLLOWS_OF == 0 for i in range(len(tokens))
    ]
    await asyncio.gather(
        *(follower(i) if one else client(i) for i, one in enumerate(follows))
    )
    return Load(errors, dict(ms), time.monotonic() - began, came)


def fill(folder: Path, n_runs: int) -> tuple[list[str], list[str]]:
    """Put runs into the queue of a service to be; return ids of some, and names."""
    make_store(str(folder / "store"))
    keys = {"store": str(folder / "store"), "sae": {"k": 4, "n_latents": 32}}
    spec = load_spec({**keys, "rows": 2000})
    progress = RunProgress(
        step=9, steps=9, rows=2000, rows_per_s=1e4, stall=0.0, loss=1.0, l0=4.0, fvu=0.5
    )
    state = folder / "runs" / ".service"
    with Queue(state / NAME) as queue:
        ids = queue.submit(
            [_run(folder, f"run-{i}", spec) for i in range(n_runs)], "ada"
        )
        for first in range(0, n_runs, 50):
            some = ids[first : first + 50]
            lease = queue.start(some, "filled")
            queue.heartbeat(lease.id, dict.fromkeys(some, progress))
            queue.end(lease.id, dict.fromkeys(some, Outcome("completed")))
    line = (
        '{"step":%d,"rows":64,"loss":1.0,"mse":1.0,"l0":4.0,"fvu":0.5,"dead":0,'
        '"lr":0.1,"rows_per_s":10000.0,"stall":0.0}\n'
    )
    for i in range(n_runs):
        run = folder / "runs" / f"run-{i}"
        run.mkdir()
        lines = "".join(line % step for step in range(1, JOURNAL_LINES + 1))
        (run / "journal.jsonl").write_text(lines)
    return ids, [Tokens(state).make(f"user-{i}", "reader") for i in range(200)]


def _run(folder: Path, name: str, spec: object) -> NewRun:
    return NewRun(
        name=name,
        url=str(folder / "runs" / name),
        spec=spec,  # type: ignore[arg-type]
        store_url=str(folder / "store"),
        memory_bytes=1 << 20,
        rows=2000,
    )


@contextlib.contextmanager
def service(folder: Path) -> Iterator[int]:
    """Serve the folder's runs in a process of its own; yield the port."""
    words = ["serve", "--runs", "runs", "--port", "0", "--device", "cpu"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield int(line.strip().rstrip("/").rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(90)
        process.stdout.close()


def train_long(folder: Path) -> str:
    """Queue a run that is trained for as long as the service runs; return its id."""
    keys = {"store": str(folder / "store"), "sae": {"k": 8, "n_latents": 1024}}
    more = {"rows": "1B", "stream": {"epochs": None, "batch": 1024}, "log_every": 5}
    spec = load_spec({**keys, **more})
    with Queue(folder / "runs" / ".service" / NAME) as queue:
        (run,) = queue.submit([_run(folder, "long", spec)], "ada")
        deadline = time.monotonic() + 60
        while queue.run(run).progress is None and time.monotonic() < deadline:
            time.sleep(0.2)
    return run


def measured(seconds: float, n_clients: int, n_runs: int) -> Iterator[BenchRecord]:
    """Yield what the service does under load."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs, tokens = fill(folder, n_runs)
        with service(folder) as port:
            trained = train_long(folder)
            runs = [*runs[:: max(1, n_runs // 50)], trained]
            each = [[token] for token in tokens[:n_clients]]
            paced = asyncio.run(load(port, each, runs, seconds, 1.0, trained))
            yield from _records(paced)
            few = [tokens[i::N_CLOSED] for i in range(N_CLOSED)]
            closed = asyncio.run(load(port, few, runs, seconds / 4, 0.0))
        with bare() as port:
            floor = asyncio.run(load(port, few, runs, seconds / 8, 0.0))
    rate, bare_rate = closed.n / closed.seconds, floor.n / floor.seconds
    yield BenchRecord(
        bench="service_load",
        case="closed loop, beside a run that is trained",
        value=rate,
        unit="answers/s",
        floor=bare_rate,
        ratio=rate / bare_rate,
    )
    for name, one in (("closed loop", closed), ("bare uvicorn", floor)):
        print(f"{name}: {one.errors} of {one.n} not 200", file=sys.stderr)


def _records(paced: Load) -> Iterator[BenchRecord]:
    yield BenchRecord(
        bench="service_load",
        case=f"errors of {paced.n} answers in {paced.seconds:.0f} s",
        value=paced.errors,
        unit="answers",
        floor=0,
        ratio=paced.errors,
    )
    yield BenchRecord(
        bench="service_load",
        case=f"fewest events that came to one of {len(paced.events)} followers",
        value=min(paced.events, default=0),
        unit="events",
        floor=paced.seconds / 2,
        ratio=2 * min(paced.events, default=0) / paced.seconds,
    )
    for route, ms in sorted(paced.ms.items()):
        p99 = statistics.quantiles(ms, n=100)[98]
        for what, value in (("p50", statistics.median(ms)), ("p99", p99)):
            yield BenchRecord(
                bench="service_load",
                case=f"{what} of {route}",
                value=value,
                unit="ms",
                floor=WANTED_MS,
                ratio=value / WANTED_MS,
            )


@contextlib.contextmanager
def bare() -> Iterator[int]:
    """Serve two bytes with uvicorn and nothing else."""
    port = 18_000 + os.getpid() % 10_000
    process = subprocess.Popen([sys.executable, "-c", BARE, str(port)])
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Measure, and print lines of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1000)
    asked = parser.parse_args()
    for record in measured(asked.seconds, asked.clients, asked.runs):
        print(record.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
