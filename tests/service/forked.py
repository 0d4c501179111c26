"""Processes of the service that begin in milliseconds: forked from one that has
imported the trainer, and has done nothing with it.

`python -m tests.service.forked SOCKET` is that one. What a forked process runs is the
real thing: `pass_process.main`, or a service's supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from schemas.service import SlotState
from trainer.passes import pass_process, supervisor
from trainer.passes.pass_log import begin_log
from trainer.passes.process_identity import lives, process_start
from trainer.passes.supervisor import Supervisor
from trainer.queue.database import NAME
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Lease
from trainer.queue.slots import Slot
from trainer.service.app import make_app
from trainer.service.service import Places, Service
from trainer.service.tokens import Tokens

ROOT = Path(__file__).parents[2]
MEMORY = 1 << 40


class Forks:
    """Asks for forked processes."""

    def __init__(self, address: Path) -> None:
        self._address = address

    def fork(self, role: str, *arguments: str, log: Path | None = None) -> int:
        """Return the pid of a new process."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._address))
            asked = [role, str(log or os.devnull), *arguments]
            connection.sendall(json.dumps(asked).encode())
            connection.shutdown(socket.SHUT_WR)
            return int(connection.recv(100))


class ForkedExecutor:
    """An Executor by forks."""

    def __init__(self, state: Path, forks: Forks) -> None:
        self._state = state
        self._forks = forks

    def start(self, lease: Lease, slot: Slot) -> ForkedProcess:
        log = begin_log(self._state, lease.id)
        pid = self._forks.fork("pass", str(self._state), lease.id, log=log)
        return ForkedProcess(pid)


class ForkedProcess:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._start = process_start(pid)

    def ended(self) -> str | None:
        there = self._start is not None and lives(self.pid, self._start)
        return None if there else "its process ended"


@contextlib.contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """The process from which others are forked."""
    address = folder / "forks"
    command = [sys.executable, "-m", "tests.service.forked", str(address)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as server:
        try:
            while not address.exists():
                assert server.poll() is None
                time.sleep(0.05)
            yield Forks(address)
        finally:
            server.kill()


def serve(address: str, state: str, n_slots: str, *api: str) -> None:
    """A service until it is killed, with an API where its port, runs and stores are
    given.
    """
    supervisor.EVERY_S = 0.02
    folder = Path(state)
    slots = [Slot(f"cpu-{i}", "cpu", MEMORY, {}) for i in range(int(n_slots))]
    queue = Queue(folder / NAME, most_losses=10**6)
    executor = ForkedExecutor(folder, Forks(Path(address)))
    Supervisor(queue, slots, executor, folder).start()
    if not api:
        signal.pause()
    port, runs, stores = api
    states = [SlotState(name="cpu-0", device="cpu", memory_bytes=MEMORY, runs=[])]
    service = Service(Places(runs, (stores,)), queue, states)
    app = make_app(service, Tokens(folder))
    # the port of one that was killed is free at once
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listening])


def _answer(connection: socket.socket, address: str) -> None:
    data = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(4096):
            data += piece
    try:
        role, log, *arguments = json.loads(data)
    except ValueError:  # half a request, of one that was killed
        return
    pid = os.fork()
    if pid:
        # who asked may have been killed meanwhile
        with contextlib.suppress(OSError):
            connection.sendall(str(pid).encode())
        return
    try:
        os.setsid()
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _become(role, arguments, address)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        # what follows is the life of the process that forks
        os._exit(0)


def _become(role: str, arguments: list[Any], address: str) -> None:
    if role == "service":
        serve(address, *arguments)
    else:
        sys.argv = ["pass_process", *arguments]
        pass_process.main()


def main() -> None:
    """Import what a pass and a submission need, and fork at each request."""
    import torch

    from trainer.training import one_pass, train_group  # noqa: F401

    # by it torch imports some 800 modules more, when memory is first estimated
    with torch.device("meta"):
        torch.empty(1)

    address = sys.argv[1]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{address}.new")
        listening.listen()
        Path(f"{address}.new").rename(address)
        while True:
            connection, _ = listening.accept()
            with connection:
                _answer(connection, address)


if __name__ == "__main__":
    main()
