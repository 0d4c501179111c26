"""A service that answers on the loopback, in a thread of the test's process; it trains
nothing unless a test does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn

from schemas.service import ServiceRun, SlotState, Submission
from tests.support import make_store
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Outcome
from trainer.service.app import make_app
from trainer.service.from_proxy import FromProxy
from trainer.service.patient_protocol import PatientProtocol
from trainer.service.service import Places, Service
from trainer.service.tokens import Tokens, User

SLOT = SlotState(name="cpu-0", device="cpu", memory_bytes=1 << 30, runs=[])
SAE = {"kind": "topk", "k": 4, "n_latents": 32}


class Served(NamedTuple):
    """A service, and where it answers."""

    url: str
    folder: Path
    service: Service
    tokens: Tokens
    app: Any

    @property
    def store(self) -> str:
        return str(self.folder / "stores" / "small")

    def client(self, role: Any = "admin", user: str = "ada") -> httpx.Client:
        """A client with a token of its own."""
        token = self.tokens.make(user, role)
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def spec(self, **more: Any) -> dict[str, Any]:
        return {"store": self.store, "sae": SAE, "rows": 2000, **more}

    def submitted(self, user: str = "ada", **more: Any) -> ServiceRun:
        """A run that was submitted without HTTP."""
        submission = Submission(spec=self.spec(), **more)
        (run,) = self.service.submit(submission, User(user, "submitter", "0"))
        return run

    def ended(self, run: ServiceRun, kind: Any = "completed") -> None:
        """Let a run end as if it had been trained."""
        lease = self.service.queue.start([run.id], SLOT.name)
        self.service.queue.end(lease.id, {run.id: Outcome(kind, "so it ended")})


@contextlib.contextmanager
def served(
    folder: Path,
    *,
    tls: bool = False,
    own_hosts: bool = True,
    proxies: Sequence[str] = (),
    catalog: str | None = None,
) -> Iterator[Served]:
    """Serve runs and stores of a folder; its store is `stores/small`."""
    stores = folder / "stores"
    if not stores.exists():
        make_store(str(stores / "small"))
    places = Places(str(folder / "runs"), (str(stores),), catalog)
    tokens = Tokens(folder / "state")
    with (
        Queue(folder / "state" / "service.sqlite") as queue,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        service = Service(places, queue, [SLOT])
        port = listening.getsockname()[1]
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}") if own_hosts else None
        app = make_app(service, tokens, hosts=hosts, tls=tls)
        with answering(FromProxy(app, proxies) if proxies else app, listening):
            url = f"http://127.0.0.1:{port}"
            yield Served(url, folder, service, tokens, app)


@contextlib.contextmanager
def answering(app: Any, listening: socket.socket) -> Iterator[None]:
    """Answer on a socket, as `trainer serve` does."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=16 << 10,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()
