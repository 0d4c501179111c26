"""The driver of a harvest on Ray: it hands units to workers and finishes the store.

It loads no model. What is done is what the store says: a unit of a worker that is gone
is handed to another one, and if it had been committed after all, that one finds it.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from actstore.console.user_warnings import warn
from actstore.engines.engine_option import EngineOptions
from actstore.engines.ray_engine import (
    RayWorkers,
    Reply,
    connected,
    room_for,
    threads_each,
)
from actstore.engines.work_error import as_raised
from actstore.engines.worker_place import node, place_like_here
from actstore.errors import (
    ClusterLostError,
    EngineError,
    HarvestWarning,
    SpecError,
    StorageError,
)
from actstore.format import object_keys
from actstore.format.manifest import read_plan
from actstore.format.storage import Storage
from actstore.harvesting.block_source import planned_tokens
from actstore.harvesting.finish_store import finish_generation
from actstore.harvesting.harvest_warnings import warn_of_corpus, warn_of_non_finite
from actstore.harvesting.progress import Progress, Report
from actstore.store import committed_units
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from schemas.engines import DoneUnit, HarvestAnswer, HarvestQuestion, HarvestSetup
from schemas.harvest import HarvestSpec, Plan

WORK = "actstore.harvesting.harvest_worker:HarvestWorker"
# One whose tokens are read, one that the model runs over, one that is encoded, one that
# is written: with as many a worker never waits for the driver.
UNITS_AT_ONCE = 4
# Workers that are lost one after the other, without a unit done in between, before the
# harvest is given up; and workers that one unit may cost.
MOST_LOST = 5
MOST_TRIES = 3
WAIT_S = 0.5
KEPT = "What is committed is kept: the same command goes on from there"


def harvest_on_ray(
    spec: HarvestSpec,
    out: str,
    engine: EngineOptions,
    *,
    device: str,
    options: Mapping[str, Any] | None,
    report: Report,
) -> Store:
    """Harvest on a Ray cluster; the arguments are those of `harvest_on_engine`.

    Raises:
        EngineError: Ray is missing or cannot be reached, or its workers are lost again
            and again; what is committed is kept.
    """
    storage = Storage(out, dict(options or {}))
    if not storage.is_exclusive():
        raise StorageError(
            f"{storage.url}: this place has no conditional create, or ignores the"
            " condition, so workers could overwrite each other's records; harvest there"
            " without --engine"
        )
    threads = _threads(storage, device, engine)
    gpus = 1 if device == "cuda" else 0
    setup = HarvestSetup(
        place=place_like_here(device, threads),
        spec=spec,
        out=out,
        options=_crossing(options),
    )
    report(Progress("starting Ray"))
    cpus = threads or 1
    with (
        connected(engine, cpus) as ray,
        closing(RayWorkers(ray, room_for(ray, engine, cpus, gpus), WORK)) as workers,
    ):
        driver = _Driver(storage, setup.to_json(), workers, report)
        driver.run()
    report(Progress("finishing the store"))
    return finished(storage, driver.tokenizer_keys, out, options)


def finished(
    storage: Storage,
    tokenizer_keys: list[str],
    out: str,
    options: Mapping[str, Any] | None,
) -> Store:
    """Finish a store whose units are all committed; open it, and warn of what is odd.

    tokenizer_keys: Files of the tokenizer that the workers wrote.
    """
    plan = read_plan(storage, 0)
    finish_generation(storage, plan, None, tokenizer_keys)
    store = open_store(out, dict(options or {}))
    warn_of_corpus(plan, committed_units.committed_blocks(storage))
    warn_of_non_finite(store)
    return store


def _crossing(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of a file system that go to other machines as JSON."""
    try:
        crossed: dict[str, Any] = json.loads(json.dumps(dict(options or {})))
    except (TypeError, ValueError):
        raise SpecError(
            "options: with an engine, wanted keys and values that JSON has"
        ) from None
    return crossed


def _threads(storage: Storage, device: str, engine: EngineOptions) -> int | None:
    """Return torch's threads of each worker; None on a GPU, whose results have no part
    in them.

    A harvest that was begun goes on with as many as it had: the last digits of values
    may depend on them, and so the plan has them.
    """
    if device == "cuda":
        return None
    if storage.exists(object_keys.plan_key(0)):
        return read_plan(storage, 0).numerics.threads
    return threads_each(engine, torch.get_num_threads())


@dataclass(slots=True)
class _Seat:
    """A worker, as the driver knows it.

    Attributes:
        number: Its place among those that there are; the first reads the corpus.
        units: Units that it was handed and has not committed.
        answer: What it said last.
        is_seen: Whether the driver sees what it writes.
    """

    number: int
    units: set[int] = field(default_factory=set)
    answer: HarvestAnswer | None = None
    is_seen: bool = False

    @property
    def is_writing(self) -> bool:
        """Whether it has joined the store."""
        return self.answer is not None and self.answer.stage == "writing"


class _Driver:
    """Hands units to workers until all are committed.

    Attributes:
        tokenizer_keys: Files of the tokenizer that the workers wrote.
    """

    def __init__(
        self, storage: Storage, setup: str, workers: RayWorkers, report: Report
    ) -> None:
        self._storage = storage
        self._setup = setup
        self._workers = workers
        self._report = report
        self._seats: dict[int, _Seat] = {}
        self._plan: Plan | None = None
        self._to_do: deque[int] = deque()
        self._beginner: int | None = None  # the worker that may begin the store
        self._tries: Counter[int] = Counter()
        self._n_lost = 0  # since the last unit that was done
        self._n_done = 0
        self._n_beyond = 0
        self._tokens = 0
        self._resumed = 0
        self._bytes = 0
        self.tokenizer_keys: list[str] = []

    def run(self) -> None:
        """Harvest every unit that is not committed."""
        if self._storage.exists(object_keys.plan_key(0)):
            self._take_plan()
        for _ in range(self._workers.room.n_workers):
            self._begin_worker()
        while not self._has_ended():
            for reply in self._replies():
                self._take(reply)
            self._report(self._progress())

    def _replies(self) -> list[Reply]:
        try:
            return self._workers.replies(WAIT_S)
        except ClusterLostError as error:
            raise ClusterLostError(f"{error}. {KEPT}") from None

    def _has_ended(self) -> bool:
        if self._plan is None or self._to_do:
            return False
        # One worker has to have come so far that it has compared its plan.
        is_joined = any(seat.is_writing for seat in self._seats.values())
        return is_joined and not any(seat.units for seat in self._seats.values())

    def _begin_worker(self) -> None:
        number = self._workers.begin(self._setup, HarvestQuestion().to_json())
        taken = {seat.number for seat in self._seats.values()}
        # One that was lost leaves its number to the worker in its place.
        free = next(k for k in range(len(taken) + 1) if k not in taken)
        self._seats[number] = _Seat(free)

    def _take_plan(self) -> None:
        """Read the plan, and which of its units are committed."""
        if not self._storage.exists(object_keys.plan_key(0)):
            raise self._unseen("what its worker has written")
        plan = read_plan(self._storage, 0)
        blocks = committed_units.committed_blocks(self._storage)
        done = committed_units.committed_units(self._storage, 0)
        self._plan = plan
        self._resumed = sum(blocks[unit].n_tokens for unit in done if unit in blocks)
        self._tokens = self._resumed
        self._n_done = len(done)
        self._to_do.extend(k for k in range(plan.layout.n_units) if k not in done)

    def _take(self, reply: Reply) -> None:
        """Take what a worker says, and ask it again."""
        if reply.answer is None:
            self._replace(reply.worker, reply.why)
            return
        seat = self._seats[reply.worker]
        answer = HarvestAnswer.model_validate_json(reply.answer)
        seat.answer = answer
        for note in answer.notes:
            warn(note, HarvestWarning)
        for done in answer.done:
            self._note_done(seat, done)
        for unit in answer.beyond:
            self._note_beyond(seat, unit)
        if answer.error is not None:
            if answer.error.is_users:
                raise as_raised(answer.error)
            self._workers.end(reply.worker)
            self._replace(reply.worker, f"{answer.node}: {answer.error.text}")
            return
        self._workers.ask(reply.worker, self._question(reply.worker, seat).to_json())

    def _note_done(self, seat: _Seat, done: DoneUnit) -> None:
        seat.units.discard(done.unit)
        if not seat.is_seen:
            # A folder of that machine's own would have a plan too, if it was used
            # before.
            key = object_keys.unit_key(done.unit, 0)
            if not self._storage.exists(key):
                assert seat.answer is not None
                raise self._unseen(f"what {seat.answer.node} has written")
            seat.is_seen = True
        self._n_done += 1
        self._n_lost = 0
        self._tokens += done.n_tokens
        self._bytes += done.bytes

    def _note_beyond(self, seat: _Seat, unit: int) -> None:
        """Leave out a unit that the corpus does not reach, and all after it."""
        seat.units.discard(unit)
        left = [other for other in self._to_do if other < unit]
        self._n_beyond += len(self._to_do) - len(left) + 1
        self._to_do = deque(left)

    def _replace(self, worker: int, why: str) -> None:
        """Give a lost worker's units to others, and begin another worker."""
        seat = self._seats.pop(worker)
        if self._beginner == worker:
            self._beginner = None
        self._n_lost += 1
        for unit in seat.units:
            self._tries[unit] += 1
        tried = max((self._tries[unit] for unit in seat.units), default=0)
        if self._n_lost >= MOST_LOST or tried >= MOST_TRIES:
            raise EngineError(
                f"{self._n_lost} workers were lost one after the other; the last one:"
                f" {why}. {KEPT}"
            )
        # The lowest first: whoever follows the store reads it from the front.
        self._to_do = deque(sorted([*seat.units, *self._to_do]))
        self._begin_worker()

    def _question(self, worker: int, seat: _Seat) -> HarvestQuestion:
        """Return what a worker is to do next."""
        assert seat.answer is not None
        stage = seat.answer.stage
        if stage == "loaded":
            may_write = self._permission(worker)
            return HarvestQuestion(may_write=may_write, number=seat.number)
        if stage == "writing":
            if self._plan is None:
                self._take_plan()
            self.tokenizer_keys = seat.answer.tokenizer_keys
            units = self._handed(seat)
            seat.units.update(units)
            return HarvestQuestion(units=units)
        return HarvestQuestion()

    def _permission(self, worker: int) -> Literal["", "begin", "join"]:
        """Return whether a worker may write: one begins the store, then others join."""
        if self._plan is not None:
            return "join"
        if self._beginner in {None, worker}:
            self._beginner = worker
            return "begin"
        return ""

    def _handed(self, seat: _Seat) -> list[int]:
        """Take units off the list for a worker; few at the end, for all to end at once.

        With 6 units left and 4 workers, each may have 2.
        """
        fair = -(-len(self._to_do) // max(1, len(self._seats)))  # rounded up
        n = min(UNITS_AT_ONCE, fair) - len(seat.units)
        return [self._to_do.popleft() for _ in range(min(n, len(self._to_do)))]

    def _progress(self) -> Progress:
        seats = self._seats.values()
        if self._plan is None:
            n_here = sum(seat.answer is not None for seat in seats)
            stage = "loading the model" if n_here else "waiting for a worker"
            return Progress(f"{stage} ({n_here} of {len(seats)} workers are there)")
        layout = self._plan.layout
        n_units = layout.n_units - self._n_beyond
        answers = [seat.answer for seat in seats if seat.answer is not None]
        return Progress(
            stage="harvesting",
            tokens=self._tokens + sum(answer.tokens for answer in answers),
            n_tokens=planned_tokens(layout, range(n_units)),
            units=self._n_done,
            n_units=n_units,
            in_flight=sum(answer.in_flight for answer in answers),
            resumed=self._resumed,
            bytes=self._bytes,
        )

    def _unseen(self, what: str) -> EngineError:
        return EngineError(
            f"{self._storage.url}: {node()} does not see {what}; choose a place that"
            " all machines share"
        )
