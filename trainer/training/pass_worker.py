"""The worker of a sweep on an engine: it trains passes, one after the other.

It is made from a PassSetup. A thread trains, by `train_pass`; whoever asks is told at
once how far it has come.
"""

from __future__ import annotations

import threading
import time
import warnings

from actstore.engines.work_error import work_error
from actstore.engines.worker_place import in_place, node
from actstore.machine.stop_signals import Stop, Stopped
from actstore.stream.stream import StreamWarning
from schemas.engines import (
    PassAnswer,
    PassProgress,
    PassQuestion,
    PassSetup,
    RunFigures,
    WorkError,
)
from schemas.service import PassSpec
from trainer.errors import RunLockedError, TrainerWarning
from trainer.training.memory_estimate import usable_memory
from trainer.training.one_pass import train_pass
from trainer.training.step_loop import Progress

# An answer comes when a pass ends, or after this time.
ANSWER_S = 0.5
ENDS = ("ended", "stopped", "failed")
# A process that was killed may hold its runs for a moment; another that trains them
# holds them for longer.
LOCK_S = 30.0
LOCK_EVERY_S = 0.5


class PassWorker:
    """Trains the passes that it is given."""

    def __init__(self, setup: str) -> None:
        """Wait for a pass; setup: a PassSetup, as JSON."""
        self._place = PassSetup.model_validate_json(setup).place
        self._changed = threading.Condition()
        self._is_met = False  # the first answer comes at once
        self._stage = "idle"
        self._stop = Stop()
        self._progress: PassProgress | None = None
        self._saved = ""
        self._error: WorkError | None = None
        self._notes: list[str] = []

    def answer(self, question: str) -> str:
        """Take a PassQuestion, and return a PassAnswer, both as JSON."""
        asked = PassQuestion.model_validate_json(question)
        with self._changed:
            if asked.begin is not None:
                self._begin(asked.begin)
            if asked.stop is not None and self._stop.number is None:
                self._stop.number = asked.stop
            if not self._is_met:
                self._is_met = True
            elif self._stage in {"training", "idle"}:
                self._changed.wait_for(lambda: self._stage in ENDS, ANSWER_S)
            return self._answer().to_json()

    def _begin(self, spec: PassSpec) -> None:
        """Train a pass; the lock is held."""
        self._stage = "training"
        self._stop = Stop()
        self._progress = None
        self._saved = ""
        thread = threading.Thread(
            target=self._train, args=(spec,), name="train", daemon=True
        )
        thread.start()

    def _answer(self) -> PassAnswer:
        """Return how far the pass has come; the lock is held."""
        answer = PassAnswer.model_validate(
            {
                "stage": self._stage,
                "node": node(),
                "memory": self._memory(),
                "progress": self._progress,
                "saved": self._saved,
                "notes": self._notes,
                "error": self._error,
            }
        )
        self._notes = []
        self._error = None
        # How a pass has ended is said once.
        if self._stage != "training":
            self._stage = "idle"
        return answer

    def _memory(self) -> int:
        """Return what training may take: while it trains, that is not known."""
        if self._stage == "training":
            return 0
        return usable_memory(self._place.device)

    def _train(self, spec: PassSpec) -> None:
        stage = "ended"
        error = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with in_place(self._place):
                    self._train_when_free(spec)
            except Stopped as stopped:
                stage = "stopped"
                self._saved = stopped.saved
            except BaseException as raised:  # noqa: BLE001 (the driver is told)
                stage = "failed"
                error = work_error(raised)
        notes = [
            str(one.message)
            for one in caught
            if issubclass(one.category, (StreamWarning, TrainerWarning))
        ]
        with self._changed:
            self._notes = notes
            self._error = error
            self._stage = stage
            self._changed.notify_all()

    def _train_when_free(self, spec: PassSpec) -> None:
        """Train a pass; wait a moment for who still writes one of its runs."""
        until = time.monotonic() + LOCK_S
        while True:
            try:
                return train_pass(spec, stop=self._stop, report=self._note)
            except RunLockedError:
                if time.monotonic() > until or self._stop.number is not None:
                    raise
                time.sleep(LOCK_EVERY_S)

    def _note(self, now: Progress) -> None:
        """Note where the pass is; called after each step."""
        self._progress = PassProgress(
            step=now.step,
            steps=now.steps,
            rows=now.rows,
            rows_per_s=now.rows_per_s,
            seconds=now.seconds,
            stall_s=now.stall_s,
            last={
                url: RunFigures(loss=one.loss, l0=one.l0, fvu=one.fvu, dead=one.dead)
                for url, one in now.last.items()
            },
        )
