"""The driver of a sweep on Ray: it gives passes to workers and shows how far they are.

It trains nothing. What is done is what the run folders say: a pass whose worker is gone
goes on in another one, from the checkpoints that are there.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from actstore.engines.ray_engine import RayWorkers, Reply
from actstore.engines.work_error import as_raised
from actstore.engines.worker_place import node
from actstore.errors import ClusterLostError, EngineError
from actstore.format.storage import Storage
from actstore.machine.stop_signals import Stop, Stopped
from schemas.engines import PassAnswer, PassProgress, PassQuestion
from schemas.service import PassSpec
from trainer.training.learner import Interval
from trainer.training.step_loop import Progress, Report

WORK = "trainer.training.pass_worker:PassWorker"
WAIT_S = 0.5
# Once one worker is there, the others are waited for so long before passes are planned:
# one that comes later is given passes all the same, but its memory is not known then.
MEET_S = 10.0
# A pass that is stopped saves within this time, or is ended.
SAVE_S = 120.0
# Without its head, a cluster's workers end within 60 s, of which some have passed.
SAVE_LOST_S = 20.0
KEPT = "What was saved is kept: --resume goes on from there"
MOST_TRIES = 3
MOST_LOST = 5


class EndedPass(NamedTuple):
    """A pass that has been trained.

    Attributes:
        spec: Its runs.
        progress: Where it was at the end; None where its runs had ended before.
        seconds: How long it took, from its first begin on.
    """

    spec: PassSpec
    progress: PassProgress | None
    seconds: float


@dataclass(slots=True)
class _Seat:
    """A worker, as the driver knows it.

    Attributes:
        number: The number of the pass that it trains; None: none.
        answer: What it said last.
        is_stopping: Whether it has been told to stop.
        is_seen: Whether the driver sees what it writes.
    """

    number: int | None = None
    answer: PassAnswer | None = None
    is_stopping: bool = False
    is_seen: bool = False


@dataclass(slots=True)
class PassDriver:
    """Gives passes to workers until all are trained.

    Attributes:
        workers: The workers.
        setup: What each is made from, as JSON.
        stop: Once it has a signal, all passes are stopped and saved.
        tell: Is given what a worker warns of, a line each.
        report: Is given the progress of all passes together.
    """

    workers: RayWorkers
    setup: str
    stop: Stop
    tell: Callable[[str], None]
    report: Report
    _seats: dict[int, _Seat] = field(default_factory=dict)
    _passes: list[PassSpec] = field(default_factory=list)
    _to_do: deque[int] = field(default_factory=deque)
    _last: dict[int, PassProgress] = field(default_factory=dict)
    _began: dict[int, float] = field(default_factory=dict)
    _ended: dict[int, EndedPass] = field(default_factory=dict)
    _tries: Counter[int] = field(default_factory=Counter)
    _n_lost: int = 0

    def meet(self, n_workers: int) -> int:
        """Begin workers; return the bytes that a pass may take on each of them."""
        for _ in range(n_workers):
            self._begin_worker()
        first_came = None
        while True:
            self._listen()
            self.stop.check()
            answers = [seat.answer for seat in self._seats.values() if seat.answer]
            if answers and first_came is None:
                first_came = time.monotonic()
            waited = time.monotonic() - (first_came or time.monotonic())
            if len(answers) == n_workers or waited > MEET_S:
                break
        # Workers on one machine share its memory; a GPU is a worker's alone.
        on_node = Counter(answer.node for answer in answers)
        shared = 1 if self.workers.room.gpus else max(on_node.values())
        return min(answer.memory for answer in answers) // shared

    def train(self, passes: Sequence[PassSpec]) -> list[EndedPass]:
        """Train passes, those with the most runs first; return them in their order.

        Raises:
            EngineError: Workers are lost again and again.
            Stopped: There was a signal; what was trained is saved.
        """
        self._passes = list(passes)
        numbers = range(len(passes))
        self._to_do = deque(sorted(numbers, key=lambda n: -len(passes[n].runs)))
        try:
            while len(self._ended) < len(passes) and self.stop.number is None:
                self._listen()
                if self._last:
                    self.report(self._progress())
        except ClusterLostError as error:
            self._save_all(signal.SIGTERM)
            raise ClusterLostError(f"{error}. {KEPT}") from None
        except BaseException:
            # A pass that failed, say, ends the sweep; the others save what they have.
            self._save_all(signal.SIGTERM)
            raise
        if self.stop.number is not None and len(self._ended) < len(passes):
            others = "the others are saved"
            if not self._save_all(self.stop.number):
                others = "not all others could be saved: these have their checkpoints"
            raise Stopped(
                self.stop.number,
                f"stopped; {len(self._ended)} of {len(passes)} passes have ended, and"
                f" {others}",
            )
        return [self._ended[number] for number in numbers]

    def _begin_worker(self) -> None:
        number = self.workers.begin(self.setup, PassQuestion().to_json())
        self._seats[number] = _Seat()

    def _listen(self) -> None:
        """Take what workers say, and ask them again."""
        for reply in self.workers.replies(WAIT_S):
            self._take(reply)
        for worker, seat in self._seats.items():
            if seat.answer is not None and not self.workers.is_asked(worker):
                self.workers.ask(worker, self._question(seat).to_json())

    def _take(self, reply: Reply) -> None:
        if reply.answer is None:
            self._replace(reply.worker, reply.why)
            return
        seat = self._seats[reply.worker]
        answer = PassAnswer.model_validate_json(reply.answer)
        seat.answer = answer
        for note in answer.notes:
            self.tell(note)
        if seat.number is None:
            return
        if answer.progress is not None:
            self._last[seat.number] = answer.progress
            self._n_lost = 0
            self._look(seat)
        if answer.error is not None:
            if answer.error.is_users:
                seat.number = None
                raise as_raised(answer.error)
            self.workers.end(reply.worker)
            self._replace(reply.worker, f"{answer.node}: {answer.error.text}")
        elif answer.stage == "ended":
            self._note_ended(seat)
        elif answer.stage == "stopped":
            seat.number = None

    def _look(self, seat: _Seat) -> None:
        """Look whether what a worker writes is seen here."""
        if seat.is_seen or seat.number is None:
            return
        for url in self._passes[seat.number].runs:
            if not Storage(url).exists("spec.json"):
                assert seat.answer is not None
                raise EngineError(
                    f"{url}: {node()} does not see what {seat.answer.node} has written;"
                    " choose a place that all machines share"
                )
        seat.is_seen = True

    def _note_ended(self, seat: _Seat) -> None:
        assert seat.number is not None
        self._look(seat)
        number = seat.number
        seconds = time.monotonic() - self._began[number]
        self._ended[number] = EndedPass(
            self._passes[number], self._last.get(number), seconds
        )
        seat.number = None

    def _replace(self, worker: int, why: str) -> None:
        """Give a lost worker's pass to another, and begin another worker."""
        seat = self._seats.pop(worker)
        self._n_lost += 1
        tries = 0
        if seat.number is not None:
            self._tries[seat.number] += 1
            tries = self._tries[seat.number]
            self._to_do.appendleft(seat.number)
        if self._n_lost >= MOST_LOST or tries >= MOST_TRIES:
            raise EngineError(
                f"{self._n_lost} workers were lost one after the other; the last one:"
                f" {why}. {KEPT}"
            )
        self._begin_worker()

    def _question(self, seat: _Seat) -> PassQuestion:
        """Return what a worker is to do next."""
        if seat.number is not None or not self._to_do or self.stop.number is not None:
            return PassQuestion()
        number = self._to_do.popleft()
        seat.number = number
        self._began.setdefault(number, time.monotonic())
        return PassQuestion(begin=self._passes[number])

    def _save_all(self, number: int) -> bool:
        """Have every pass that is being trained stop and save; return whether all did.

        number: The signal's that ends them.
        """
        self._to_do.clear()
        save_s = SAVE_LOST_S if self.workers.is_lost else SAVE_S
        until = time.monotonic() + save_s
        told: set[int] = set()
        all_saved = True
        while time.monotonic() < until:
            busy = {
                worker
                for worker, seat in self._seats.items()
                if seat.number is not None
            }
            if not busy:
                return all_saved
            for worker in busy - told:
                if not self.workers.is_asked(worker):
                    self.workers.ask(worker, PassQuestion(stop=number).to_json())
                    told.add(worker)
            for reply in self.workers.replies(WAIT_S):
                seat = self._seats[reply.worker]
                if reply.answer is None:
                    all_saved = all_saved and seat.number is None
                    del self._seats[reply.worker]
                    continue
                answer = PassAnswer.model_validate_json(reply.answer)
                if answer.stage != "training":
                    all_saved = all_saved and answer.error is None
                    seat.number = None
                elif reply.worker in told:
                    self.workers.ask(reply.worker, PassQuestion().to_json())
        return False

    def _progress(self) -> Progress:
        """Return the progress of all passes, as if they were one.

        Passes that have not begun are taken to be as long as the longest that has.
        """
        known = self._last
        longest = max((one.steps for one in known.values()), default=0)
        n_unknown = len(self._passes) - len(known)
        busy = [
            known[seat.number]
            for seat in self._seats.values()
            if seat.number is not None and seat.number in known
        ]
        busy = busy or list(known.values())
        seconds = sum(one.seconds for one in busy)
        stall_s = sum(one.stall_s for one in busy)
        figures = {
            url: Interval(0, one.loss, 0.0, one.l0, one.fvu, one.dead, [], {})
            for progress in known.values()
            for url, one in progress.last.items()
        }
        return Progress(
            step=sum(one.step for one in known.values()),
            steps=sum(one.steps for one in known.values()) + n_unknown * longest,
            rows_per_s=sum(one.rows_per_s for one in busy),
            stall=stall_s / seconds if seconds else 0.0,
            last=figures,
        )
