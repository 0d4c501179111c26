"""A service for tests of its pages: the real one, whose slots are played by the test."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from actstore.format.storage import Storage
from schemas.records import StepRecord
from schemas.service import Role, RunProgress, ServiceRun, SlotState
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Lease, NewRun, Outcome
from trainer.service.app import make_app
from trainer.service.service import Places, Service
from trainer.service.tokens import Tokens

SITES = {f"blocks.{layer}.hook_mlp_out": 16 for layer in range(4)}
SLOTS = [
    SlotState(name="cpu-0", device="cpu", memory_bytes=4_000_000_000, runs=[]),
    SlotState(name="cpu-1", device="cpu", memory_bytes=4_000_000_000, runs=[]),
]


def make_stores(folder: Path) -> Path:
    """A folder with one store."""
    make_store(folder / "tiny", SITES, n_units=40, unit_sequences=4)
    return folder


class PlayedService:
    """A service without a supervisor: the test starts passes and says how they go.

    Attributes:
        folder: Where all of it lies.
        service: The service.
        tokens: Tokens by user's name: "ada" submits, "root" is an admin, "eve" reads.
        app: What answers HTTP.
    """

    def __init__(self, folder: Path, stores: Path) -> None:
        self.folder = folder
        self.queue = Queue(folder / "state" / "service.sqlite")
        (folder / "runs").mkdir()
        self.store = stores / "tiny"
        places = Places(str(folder / "runs"), (str(stores),))
        self.service = Service(places, self.queue, SLOTS)
        tokens = Tokens(folder / "state")
        roles: dict[str, Role] = {"ada": "submitter", "root": "admin", "eve": "reader"}
        self.tokens = {name: tokens.make(name, role) for name, role in roles.items()}
        self.app = make_app(self.service, tokens)

    def close(self) -> None:
        self.queue.close()

    def spec(self, **sae: object) -> TrainSpec:
        keys = {"kind": "topk", "k": 4, "expansion": 4, **sae}
        spec = {"store": str(self.store), "sae": keys, "rows": "20k"}
        return TrainSpec.model_validate({**spec, "stream": {"batch": 256}})

    def add(
        self,
        names: Sequence[str],
        user: str = "ada",
        sweep: str | None = None,
        spec: TrainSpec | None = None,
    ) -> list[str]:
        """Queue runs without a look at their names."""
        runs = [
            NewRun(
                name=name,
                url=str(self.folder / "runs" / f"run-{abs(hash(name))}"),
                spec=spec or self.spec(),
                store_url=str(self.store),
                memory_bytes=40_000_000,
                rows=20_000,
            )
            for name in names
        ]
        return self.queue.submit(runs, user, sweep=sweep)

    def start(self, ids: Sequence[str], slot: str = "cpu-0") -> Lease:
        return self.queue.start(ids, slot)

    def advance(self, lease: Lease, steps: int, of: int = 400) -> None:
        """Write the journals of a pass up to a step, and tell the queue."""
        progress = {}
        for place, run_id in enumerate(lease.runs):
            records = [record(step, place) for step in range(10, steps + 1, 10)]
            text = "".join(one.model_dump_json() + "\n" for one in records)
            url = self.service.run(run_id).url
            Storage(url).put("journal.jsonl", text.encode())
            progress[run_id] = progress_of(records[-1], of)
        self.queue.heartbeat(lease.id, progress)

    def end(self, lease: Lease, kind: str = "completed", text: str = "") -> None:
        outcome = Outcome(kind, text)  # type: ignore[arg-type]
        self.queue.end(lease.id, dict.fromkeys(lease.runs, outcome))


def record(step: int, place: int = 0) -> StepRecord:
    """A line of a journal, as of a run that learns."""
    fvu = 0.12 + 0.03 * place + 0.8 * math.exp(-step / 60)
    wave = 0.01 * math.sin(step)
    return StepRecord(
        step=step,
        rows=step * 256,
        loss=fvu * 16 + wave,
        mse=fvu * 15,
        l0=4 + place * 4 + 20 * math.exp(-step / 30) + 10 * wave,
        fvu=fvu + wave,
        dead=3,
        lr=1e-3,
        rows_per_s=52_000 + 1000 * math.sin(step),
        stall=0.03,
        layers={site: fvu * (0.7 + 0.2 * n) for n, site in enumerate(SITES)},
    )


def progress_of(one: StepRecord, steps: int) -> RunProgress:
    names = ("step", "rows", "rows_per_s", "stall", "loss", "l0", "fvu")
    return RunProgress(steps=steps, **{name: getattr(one, name) for name in names})


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an app on the loopback; yields its address."""
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def service_run(spec: TrainSpec | None = None, **progress: float) -> ServiceRun:
    """A run as the service tells of it."""
    keys = {"store": "s", "sae": {"kind": "topk"}}
    before = progress_of(record(10), 400)
    return ServiceRun(
        id="1",
        name="run",
        url="/runs/run",
        sweep=None,
        user="ada",
        state="running",
        priority=0,
        created="2026-01-01T00:00:00+00:00",
        started="2026-01-01T00:00:01+00:00",
        ended=None,
        attempts=1,
        slot="cpu-0",
        shares_with=[],
        waits_for=None,
        error=None,
        published=None,
        spec=spec or TrainSpec.model_validate(keys),
        memory_bytes=1,
        progress=before.model_copy(update=progress),
    )
