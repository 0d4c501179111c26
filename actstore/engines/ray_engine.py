"""Workers in the processes of a Ray cluster, and the driver's talk with them.

Ray places work, and tells when a worker is gone. It is never the record: what is done
is what the store and the run folders say.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from actstore.engines.cluster_watch import ClusterWatch, answers, watch_of
from actstore.engines.engine_option import EngineOptions
from actstore.engines.local_ray import local_ray, silent
from actstore.engines.ray_worker import RayWorker
from actstore.errors import ClusterLostError, EngineError, first_line
from actstore.machine.stop_signals import NUMBERS, Stopped

# A head that has just been started may take a moment to listen.
REACH_S = 10.0


class Reply(NamedTuple):
    """An answer of a worker, or the news that it is gone.

    Attributes:
        worker: Its number.
        answer: What it says, as JSON; None where it is gone.
        why: Why it is gone.
    """

    worker: int
    answer: str | None
    why: str = ""


class Room(NamedTuple):
    """What a cluster has room for.

    Attributes:
        n_workers: How many workers at once.
        cpus: The cores of each worker.
        gpus: The GPUs of each worker, 0 or 1.
    """

    n_workers: int
    cpus: int
    gpus: int


class RayWorkers:
    """Workers that do the same kind of work, each in a process of its own.

    Each has at most one question that it has not answered. A worker that is gone is
    told of once; another is begun by whoever wants one. `close` ends them.

    Attributes:
        room: What there is room for.
    """

    def __init__(self, ray: Any, room: Room, work: str) -> None:
        """Have no worker yet.

        Args:
            ray: The module, connected to a cluster.
            room: What the workers may take.
            work: The class of their work, `module:Class`.
        """
        self.room = room
        self._ray = ray
        self._watch: ClusterWatch = watch_of(ray)
        self._work = work
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}
        self._n_begun = 0
        # Ray tells of a lost process; what that has done is looked up, so nothing is
        # done again on Ray's own account.
        self._actor = ray.remote(RayWorker).options(
            num_cpus=room.cpus,
            num_gpus=room.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )

    def begin(self, setup: str, question: str) -> int:
        """Begin a worker and ask it something; return its number.

        Where the cluster has no place for it, it waits for one.
        """
        number = self._n_begun
        self._n_begun += 1
        self._actors[number] = self._actor.remote(self._work, setup)
        self.ask(number, question)
        return number

    def ask(self, worker: int, question: str) -> None:
        """Ask a worker that has answered all questions."""
        answer = self._actors[worker].answer.remote(question)
        self._asked[answer] = worker

    def is_asked(self, worker: int) -> bool:
        """Return whether a worker has a question that it has not answered."""
        return worker in self._asked.values()

    @property
    def is_lost(self) -> bool:
        """Whether the cluster is lost: workers may still answer, for a while."""
        return self._watch.is_lost

    def replies(self, seconds: float) -> list[Reply]:
        """Return what has come from workers, after some seconds at most.

        Raises:
            ClusterLostError: The cluster is lost, which is said once.
        """
        self._watch.check()
        asked = list(self._asked)
        try:
            self._ray.wait(asked, num_returns=1, timeout=seconds)
            come, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0)
        except SystemError as error:
            _raise_stopped(error)
            raise
        return [self._reply(answer) for answer in come]

    def end(self, worker: int) -> None:
        """End a worker at once."""
        actor = self._actors.pop(worker, None)
        self._asked = {
            answer: asked for answer, asked in self._asked.items() if asked != worker
        }
        if actor is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._actors):
            self.end(worker)

    def _reply(self, answer: Any) -> Reply:
        worker = self._asked.pop(answer)
        try:
            return Reply(worker, self._ray.get(answer))
        except self._ray.exceptions.RayError as error:
            self.end(worker)
            return Reply(worker, None, _why(error))


@contextlib.contextmanager
def connected(engine: EngineOptions, cpus: int) -> Iterator[Any]:
    """Give the module `ray`, connected to a cluster, inside the `with`.

    Args:
        engine: Which cluster; without an address, one of this machine's own, or the one
            that this process is connected to already.
        cpus: The cores of each worker.

    Raises:
        EngineError: Ray is not installed, or refuses this process.
        ClusterLostError: Its cluster cannot be reached, or is lost.
    """
    if importlib.util.find_spec("ray") is None:
        raise EngineError("Ray is not installed; pip install 'actstore[ray]'")
    address = engine.engine.address
    handlers = _handlers()
    with contextlib.ExitStack() as at_end:
        if address is None and not _is_connected():
            ray = at_end.enter_context(local_ray(_cores_here(engine, cpus)))
        else:
            import ray

            if not ray.is_initialized():
                at_end.enter_context(silent(ray))
                _connect(ray, str(address))
                at_end.callback(ray.shutdown)
        _handle(handlers)
        try:
            yield ray
        except ray.exceptions.RayError as error:
            told = f"the Ray cluster is lost: {first_line(error)}"
            raise ClusterLostError(told) from error


def threads_each(engine: EngineOptions, threads: int) -> int:
    """Return how many threads each worker on CPUs computes with.

    Args:
        engine: Which cluster, and how many workers.
        threads: How many this process would compute with, without an engine.
    """
    # What a user has said holds on every machine. Else workers share this one.
    is_shared = engine.engine.address is None and engine.workers is not None
    if not is_shared or os.environ.get("OMP_NUM_THREADS"):
        return threads
    return max(1, threads // (engine.workers or 1))


def _cores_here(engine: EngineOptions, cpus: int) -> int:
    """Return the cores that this machine gives away: all, or as many as were asked."""
    return max(len(os.sched_getaffinity(0)), cpus * (engine.workers or 1))


def room_for(ray: Any, engine: EngineOptions, cpus: int, gpus: int) -> Room:
    """Return how many workers of so many cores and GPUs are to work at once.

    A worker gets no more cores than the largest machine has.

    Raises:
        EngineError: No machine has what one worker needs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    cpus = max(1, min(cpus, most))
    places = []
    for node in nodes:
        here = int(node.get("CPU", 0)) // cpus
        if gpus:
            here = min(here, int(node.get("GPU", 0)) // gpus)
        places.append(here)
    n_workers = engine.workers or sum(places)
    if n_workers == 0:
        wanted = "a GPU" if gpus else f"{cpus} cores"
        raise EngineError(
            f"no machine of the Ray cluster has {wanted} for a worker; there are"
            f" {len(nodes)} machines. With --workers, the command waits for some"
        )
    return Room(n_workers, cpus, gpus)


def _raise_stopped(error: BaseException) -> None:
    """Raise the Stopped that a signal has raised inside Ray, which may hide it."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, Stopped):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _is_connected() -> bool:
    """Return whether this process has called `ray.init` itself."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster that runs.

    Raises:
        ClusterLostError: It cannot be reached.
        EngineError: It refuses.
    """
    try:
        _check_answers(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except ray.exceptions.AuthenticationError as error:
        raise EngineError(
            f"Ray at {address} refuses this process: {first_line(error)}; set"
            " RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, as the"
            " cluster has it"
        ) from error
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ClusterLostError(
            f"Ray at {address} cannot be reached: {first_line(error).rstrip('.')};"
            " give HOST:PORT of its head (port 6379 as a rule), or auto on one of its"
            " machines"
        ) from error


def _check_answers(address: str) -> None:
    """Raise ConnectionError where nobody listens; Ray would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    host, _, port = (canonicalize_bootstrap_address(address) or "").rpartition(":")
    until = time.monotonic() + REACH_S
    while not answers(host.strip("[]"), int(port)):
        if time.monotonic() > until:
            raise ConnectionError(f"nobody listens at {host}:{port}")
        time.sleep(0.5)


def _why(error: Exception) -> str:
    """Return in a line why a worker is gone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line for line in lines if "ModuleNotFoundError" in line]
    if missing:
        return f"{missing[-1]}; is actstore installed on all machines?"
    if not lines:
        return type(error).__name__
    # An error of the worker's own comes with a traceback, whose last line says it.
    return lines[-1] if lines[0].startswith("ray::") else lines[0]


def _handlers() -> dict[int, Any]:
    """Return what signals do now that a user ends a command with."""
    return {number: signal.getsignal(number) for number in NUMBERS}


def _handle(handlers: dict[int, Any]) -> None:
    """Have signals do that again: Ray has its own idea of what a SIGTERM does."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
