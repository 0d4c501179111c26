"""Whatever users, processes and clocks do in whatever order, the queue agrees with a
plain model of it: a run is in one state, on one lease at most, and a slot has one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from schemas.service import RunProgress
from tests.service.support import SetClock, new_run
from trainer.errors import ConflictError
from trainer.queue.leases import LEASE_S
from trainer.queue.queue import MOST_LOSSES, Queue
from trainer.queue.queue_records import Outcome

SLOTS = ("cpu-0", "cpu-1")
OUTCOMES = st.builds(
    Outcome, st.sampled_from(["completed", "failed", "stopped", "apart", "lost"])
)


class Model:
    """A run as the model has it."""

    def __init__(self) -> None:
        self.state = "queued"
        self.cancelling = False
        self.losses = 0
        self.furthest = 0

    def settle(self, kind: str) -> None:
        if kind in {"completed", "failed"}:
            self.state = kind
        elif self.cancelling:
            self.state = "cancelled"
        elif kind == "lost":
            self.losses += 1
            self.state = "failed" if self.losses >= MOST_LOSSES else "queued"
        else:
            self.state = "queued"
        self.cancelling = False


class Held(NamedTuple):
    id: str
    runs: tuple[str, ...]
    heard: float


class QueueMachine(RuleBasedStateMachine):
    runs = Bundle("runs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = SetClock()
        self.queue = Queue(Path(self.folder.name) / "service.sqlite", self.clock)
        self.model: dict[str, Model] = {}
        self.held: dict[str, Held] = {}  # by slot

    def teardown(self) -> None:
        self.queue.close()
        self.folder.cleanup()

    @rule(target=runs, n=st.integers(1, 3), user=st.sampled_from("ab"))
    def submit(self, n: int, user: str) -> str:
        names = [f"r{len(self.model) + i}" for i in range(n)]
        ids = self.queue.submit([new_run(name) for name in names], user)
        self.model.update({run_id: Model() for run_id in ids})
        return ids[0]

    @rule(run=runs)
    def cancel(self, run: str) -> None:
        known = self.model[run]
        if known.state in {"completed", "failed"}:
            with pytest.raises(ConflictError):
                self.queue.cancel(run, "a")
            return
        self.queue.cancel(run, "a")
        if known.state == "running":
            known.cancelling = True
        else:
            known.state = "cancelled"

    @rule(run=runs)
    def resume(self, run: str) -> None:
        known = self.model[run]
        if known.state not in {"cancelled", "failed"}:
            with pytest.raises(ConflictError):
                self.queue.resume(run, "a")
            return
        self.queue.resume(run, "a")
        known.state, known.losses = "queued", 0

    @rule(
        target=leases,
        chosen=st.lists(runs, min_size=1, max_size=3, unique=True),
        slot=st.sampled_from(SLOTS),
    )
    def start(self, chosen: list[str], slot: str) -> str:
        queued = all(self.model[run].state == "queued" for run in chosen)
        if slot in self.held or not queued:
            with pytest.raises(ConflictError):
                self.queue.start(chosen, slot)
            return "no lease"
        lease = self.queue.start(chosen, slot)
        self.held[slot] = Held(lease.id, tuple(chosen), self.clock.now)
        for run in chosen:
            self.model[run].state = "running"
        return lease.id

    @rule(lease=leases, step=st.integers(0, 3))
    def heartbeat(self, lease: str, step: int) -> None:
        """Also of leases that have ended, and with runs of other passes."""
        slot = self.slot_of(lease)
        progress = RunProgress(
            step=step, steps=9, rows=1, rows_per_s=1, stall=0, loss=1, l0=1, fvu=1
        )
        answer = self.queue.heartbeat(lease, dict.fromkeys(self.model, progress))
        if slot is None:
            assert answer == "lost"
            return
        held = self.held[slot]
        self.held[slot] = held._replace(heard=self.clock.now)
        of_pass = [self.model[run] for run in held.runs]
        for known in of_pass:
            if step > known.furthest:
                known.furthest, known.losses = step, 0
        asked = any(known.cancelling for known in of_pass)
        assert answer == ("stop" if asked else "go on")

    @rule(lease=leases, outcome=OUTCOMES, all_told=st.booleans())
    def end(self, lease: str, outcome: Outcome, all_told: bool) -> None:
        slot = self.slot_of(lease)
        if slot is None:
            told = dict.fromkeys(self.model, outcome)
            assert not self.queue.end(lease, told)
            return
        runs = self.held.pop(slot).runs
        told = dict.fromkeys(runs if all_told else runs[:1], outcome)
        assert self.queue.end(lease, told)
        for run in runs:
            self.model[run].settle(told[run].kind if run in told else "lost")

    @rule(seconds=st.sampled_from([1.0, LEASE_S, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_time(seconds)

    @rule(day=st.floats(0, 4e9))
    def time_of_day_is_set(self, day: float) -> None:
        self.clock.day = day

    @rule(how=st.sampled_from(["opened again", "beside"]))
    def another_process(self, how: Literal["opened again", "beside"]) -> None:
        if how == "opened again":
            self.queue.close()
        else:
            with Queue(self.queue.database.path, self.clock) as other:
                assert other.counts() == self.queue.counts()
            return
        self.queue = Queue(self.queue.database.path, self.clock)

    def slot_of(self, lease: str) -> str | None:
        return next((s for s, held in self.held.items() if held.id == lease), None)

    @invariant()
    def they_agree(self) -> None:
        page = self.queue.runs(limit=1000)
        assert page.total == len(page.runs) == len(self.model)
        for run in page.runs:
            known = self.model[run.id]
            assert (run.state, run.cancelling) == (known.state, known.cancelling)
        slots = {slot: sorted(held.runs) for slot, held in self.held.items()}
        there = {slot: sorted(runs) for slot, runs in self.queue.slots().items()}
        assert there == slots
        on_slots = [run for runs in slots.values() for run in runs]
        assert len(set(on_slots)) == len(on_slots)

    @invariant()
    def silent_leases_have_expired(self) -> None:
        silent = {
            held.id
            for held in self.held.values()
            if self.clock.now - held.heard > LEASE_S
        }
        assert {lease.id for lease in self.queue.expired()} == silent

    @invariant()
    def what_ended_last_is_what_it_is(self) -> None:
        for run, known in self.model.items():
            kinds = [event.kind for event in self.queue.events(run=run)]
            last = next(kind for kind in reversed(kinds) if kind != "progress")
            expected = {"running": ["started"], "queued": ["queued", "lost"]}
            assert last in expected.get(known.state, [known.state])


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    deadline=None, max_examples=25, stateful_step_count=25, print_blob=True
)
