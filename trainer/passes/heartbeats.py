"""Keeps a pass' lease from a thread, while the main thread trains."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.machine.stop_signals import Stop
from schemas.service import RunProgress
from trainer.errors import ServiceError
from trainer.passes.pass_log import trim
from trainer.queue.leases import LEASE_S
from trainer.queue.queue import Queue
from trainer.queue.queue_records import QueuedRun

if TYPE_CHECKING:
    from trainer.training.step_loop import Progress

EVERY_S = 1.0
# After so long without a heartbeat a process asks before it goes on.
ASK_AFTER_S = LEASE_S / 2
LOST = 75  # the exit code of a process that has lost its lease


class Heartbeats:
    """A thread that tells the queue, each second, that the pass is trained still.

    When the queue answers that the lease is lost, the process ends at once and writes
    nothing more: another one may be training the runs. When it answers that the pass is
    to stop, the process gets a SIGTERM, as if a user had sent it.
    """

    def __init__(
        self, queue: Queue, lease_id: str, runs: list[QueuedRun], log: Path, stop: Stop
    ) -> None:
        """Begin with the first heartbeat.

        Args:
            queue: The queue.
            lease_id: The lease, which this process has just taken.
            runs: The runs of the pass.
            log: What this process prints to, which is kept small.
            stop: Knows whether a signal came.
        """
        self._queue = queue
        self._lease_id = lease_id
        self._runs = {run.url: run for run in runs}
        self._log = log
        self._stop = stop
        self._progress: dict[str, RunProgress] = {}
        self._noted_at = 0.0
        self._last_beat = time.monotonic()
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._beat_on, name="heartbeats", daemon=True
        )
        self._thread.start()

    def report(self, now: Progress) -> None:
        """Note where training is; called after each step, and before it is saved.

        A process that stood still for long, so that its lease may be lost, finds that
        out here, before it writes a checkpoint.
        """
        at = time.monotonic()
        if at - self._last_beat > ASK_AFTER_S:
            self._beat()
        if at - self._noted_at >= EVERY_S / 2 or now.step >= now.steps:
            self._noted_at = at
            self._progress = self._by_run(now)

    def close(self) -> None:
        """Give no more heartbeats; the last progress is told first."""
        self._ended.set()
        self._thread.join()
        self._beat()

    def _beat_on(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._beat()
            trim(self._log)

    def _beat(self) -> None:
        with self._beating:
            try:
                answer = self._queue.heartbeat(self._lease_id, self._progress)
            except ServiceError as error:
                # a full disk, say: others do not see this process as alive
                if time.monotonic() - self._last_beat > LEASE_S:
                    _end_at_once(str(error))
                return
            self._last_beat = time.monotonic()
            if answer == "lost":
                _end_at_once("its lease was lost")
            # a second signal would end it before it is saved
            if answer == "stop" and self._stop.number is None:
                os.kill(os.getpid(), signal.SIGTERM)

    def _by_run(self, now: Progress) -> dict[str, RunProgress]:
        """Return the progress of each run that has figures, by its id."""
        found = {}
        for url, interval in now.last.items():
            run = self._runs[url]
            batch = run.spec.stream.batch
            steps = min(now.steps, math.ceil(run.rows / batch))
            step = min(now.step, steps)
            found[run.id] = RunProgress(
                step=step,
                steps=steps,
                # an engine does not tell them
                rows=interval.rows or step * batch,
                rows_per_s=now.rows_per_s,
                stall=now.stall,
                loss=interval.loss,
                l0=interval.l0,
                fvu=interval.fvu,
            )
        return found


def _end_at_once(why: str) -> None:
    os.write(2, f"ended at once: {why}\n".encode())
    os._exit(LOST)
