"""The driver of a harvest on Ray: it hands units to workers until all are committed.

It loads no model. What is done is what the store says: a unit of a worker that is gone
is handed to another one, and if it had been committed after all, that one finds it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from actstore.console.user_warnings import warn
from actstore.engines.ray_engine import RayWorkers, Reply
from actstore.engines.work_error import as_raised
from actstore.engines.worker_place import node
from actstore.errors import ClusterLostError, EngineError, HarvestWarning
from actstore.format import object_keys
from actstore.format.manifest import read_plan
from actstore.format.storage import Storage
from actstore.harvesting.block_source import planned_tokens
from actstore.harvesting.progress import Progress, Report
from actstore.store import committed_units
from schemas.engines import DoneUnit, HarvestAnswer, HarvestQuestion
from schemas.harvest import Plan

# One whose tokens are read, one that the model runs over, one that is encoded, one that
# is written: with as many a worker never waits for the driver.
UNITS_AT_ONCE = 4
# Workers that are lost one after the other, without a unit done in between, before the
# harvest is given up; and workers that one unit may cost.
MOST_LOST = 5
MOST_TRIES = 3
WAIT_S = 0.5
KEPT = "What is committed is kept: the same command goes on from there"


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


class HarvestDriver:
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
