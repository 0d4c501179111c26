"""The thread that keeps slots busy: it starts passes, and settles those that ended.

It may be killed at any time. Passes go on by themselves; the next supervisor finds
their leases, watches those whose processes live, and queues the runs of others again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from actstore.errors import ActstoreError
from trainer.errors import ConflictError, ServiceError
from trainer.passes.executor import Executor, PassProcess
from trainer.passes.process_identity import end_process, lives
from trainer.queue import schedule
from trainer.queue.ended_runs import ended_runs
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Lease, Outcome, WaitingRun
from trainer.queue.slots import Slot

EVERY_S = 0.5
LOCK = "supervisor.lock"
GONE = "its process ended without a word"
UNHEARD = "its process was not heard of any more"


class Supervisor:
    """Starts passes on free slots and settles those that have ended.

    Attributes:
        slots: The slots.
        trouble: What went wrong in the last round, in words; None where nothing did.
    """

    def __init__(
        self, queue: Queue, slots: Sequence[Slot], executor: Executor, state: Path
    ) -> None:
        """Begin, without a round yet.

        Args:
            queue: The queue.
            slots: Where passes are trained.
            executor: Starts their processes.
            state: The service's folder, of which there is one supervisor at a time.

        Raises:
            ServiceError: Another service uses the folder.
        """
        self.slots = tuple(slots)
        self.trouble: str | None = None
        self._queue = queue
        self._executor = executor
        self._processes: dict[str, PassProcess] = {}
        self._keys: dict[str, str] = {}
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: int | None = _locked(state / LOCK)

    def start(self) -> None:
        """Begin the thread."""
        self._thread = threading.Thread(target=self._run, name="supervisor")
        self._thread.start()

    def wake(self) -> None:
        """Have the next round begin at once: something was submitted."""
        self._wake.set()

    def close(self, *, end_passes: bool = True, wait_s: float = 60.0) -> None:
        """End the thread.

        Args:
            end_passes: Passes are asked to save and end, and their runs are queued
                again; otherwise they go on.
            wait_s: How long to wait for that.
        """
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._lock is None:
            return
        if end_passes:
            self._end_passes(time.monotonic() + wait_s)
        os.close(self._lock)
        self._lock = None

    def waits_for(self, memory_bytes: int) -> str:
        """Return why a queued run does not begin yet, in words.

        memory_bytes: what it takes alone.
        """
        return schedule.waits_for(memory_bytes, self.slots, len(self._queue.slots()))

    def round(self) -> None:
        """Settle what has ended, and start what can start.

        Raises:
            ServiceError: The queue cannot be used.
        """
        for lease in self._queue.leases():
            self._settle_if_ended(lease)
        gone = {lease.id for lease in self._queue.expired()}
        for lease in self._queue.leases():
            if lease.id in gone:
                self._settle(lease, Outcome("lost", UNHEARD))
        self._forget_processes()
        self._start_passes()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self.round()
                self.trouble = None
            except (ActstoreError, OSError) as error:
                # the next round may find a disk with room again
                self.trouble = str(error)
            except Exception as error:  # noqa: BLE001 (slots would stay empty, unseen)
                traceback.print_exc()
                self.trouble = f"{type(error).__name__}: {error}"
            self._wake.wait(EVERY_S)

    def _settle_if_ended(self, lease: Lease) -> None:
        """End a lease whose process has ended, or will never begin."""
        if not lease.this_boot:
            self._settle(lease, Outcome("lost", "the machine was started anew"))
        elif lease.id in self._processes:
            told = self._processes[lease.id].ended()
            if told is not None:
                self._settle(lease, Outcome("lost", told))
        elif lease.pid is None:
            # a service before this one made it; a process that comes late is refused
            self._settle(lease, Outcome("stopped", "the service was started anew"))
        elif not lives(lease.pid, lease.process_start):
            self._settle(lease, Outcome("lost", GONE))

    def _settle(self, lease: Lease, outcome: Outcome) -> None:
        """End a lease; its process is gone, or is ended here first.

        outcome: of the runs that are not finished in their folders.
        """
        if not self._is_gone(lease):
            return
        runs = [self._queue.run(run_id) for run_id in lease.runs]
        finished = ended_runs(runs)
        self._queue.end(
            lease.id, {run.id: finished.get(run.id, outcome) for run in runs}
        )

    def _is_gone(self, lease: Lease) -> bool:
        process = self._processes.get(lease.id)
        if process is not None and process.ended() is None:
            return end_process(process.pid, None) or process.ended() is not None
        if lease.pid is None or not lease.this_boot:
            return True
        return end_process(lease.pid, lease.process_start)

    def _forget_processes(self) -> None:
        """Let go of processes that have ended, and ask after them."""
        self._processes = {
            lease_id: process
            for lease_id, process in self._processes.items()
            if process.ended() is None
        }

    def _start_passes(self) -> None:
        taken = self._queue.slots()
        free = [slot for slot in self.slots if slot.name not in taken]
        if not free:
            return
        waiting = {run.id: run for run in self._queue.waiting()}
        self._keys = {run: key for run, key in self._keys.items() if run in waiting}
        while free and waiting:
            slot, n_free = free[0], len(free)
            had = schedule.counted(self._queue.slot_times(), self._queue.holding())
            runs = schedule.next_pass(
                [*waiting.values()], slot, had, self._shares, n_free
            )
            free.pop(0)
            for run in runs:
                del waiting[run.id]
            with suppress(ConflictError):  # one was cancelled meanwhile
                if runs:
                    self._start_pass(runs, slot)

    def _start_pass(self, runs: Sequence[WaitingRun], slot: Slot) -> None:
        lease = self._queue.start([run.id for run in runs], slot.name)
        try:
            self._processes[lease.id] = self._executor.start(lease, slot)
        except OSError as error:
            lost = Outcome("lost", f"its process could not be started: {error}")
            self._queue.end(lease.id, {run.id: lost for run in runs})

    def _shares(self, run: WaitingRun) -> str:
        """Return what is equal of runs that can read the data together."""
        from trainer.training.sweep import sharing_key

        if run.id not in self._keys:
            there = self._queue.run(run.id)
            same_store = there.spec.model_copy(update={"store": there.store_url})
            self._keys[run.id] = sharing_key(same_store)
        return self._keys[run.id]

    def _end_passes(self, give_up: float) -> None:
        """Ask the processes of all passes to save and end, and wait for them."""
        asked = set[str]()
        while (leases := self._queue.leases()) and time.monotonic() < give_up:
            for lease in leases:
                if lease.id not in asked and lease.pid is not None:
                    asked.add(lease.id)
                    if lives(lease.pid, lease.process_start):
                        os.kill(lease.pid, signal.SIGTERM)
                self._settle_if_ended(lease)
            time.sleep(0.05)
        while self._processes and time.monotonic() < give_up:
            self._forget_processes()
            time.sleep(0.05)


def _locked(path: Path) -> int:
    """Return the descriptor of a lock that this process holds until it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ServiceError(
            f"{path.parent}: another service uses this folder; end it, or give another"
            " --state"
        ) from error
    return descriptor
