"""What a job of Slurm runs: a function of ours, found by its name.

submitit pickles a SlurmJob for it, in which there are only names and numbers. Before a
job's time is up, Slurm sends the signal that submitit asked for: the work then saves
and ends, and the job is put into the queue again, where it goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from actstore.engines.slurm_folder import JobFolder
from actstore.errors import ActstoreError, EngineError
from actstore.machine.stop_signals import Stop, Stopped, signals
from schemas.slurm import JobOutcome

Function = Callable[[str, Stop, Callable[[str], None]], None]
"""Is given its JSON, what tells of signals, and what is told the progress, as JSON."""

OURS = ("actstore.", "trainer.")
PROGRESS_EVERY_S = 2.0
# A job whose time is up so often makes no progress, or next to none.
MOST_REQUEUES = 200
RESTARTS = "SLURM_RESTART_COUNT"  # an environment variable, which Slurm sets


class SlurmJob:
    """One job of several that do something together."""

    def __init__(self, folder: str, number: int) -> None:
        """Args: the folder that they know each other by; which of them this is."""
        self.folder = folder
        self.number = number

    def __call__(self) -> None:
        """Do the job's work, and write the outcome; a user's mistake is told there."""
        folder = JobFolder(Path(self.folder))
        told: str | None = None
        try:
            with _signals() as (stop, requeue):
                try:
                    self._work(folder, stop)
                except Stopped as stopped:
                    if requeue is None or stopped.number != requeue:
                        raise
                    _check_requeues()
                    _requeue()
        except ActstoreError as error:
            told = str(error)
        except Exception as error:
            # A fault of ours: the traceback is in the job's log.
            told = f"{type(error).__name__}: {error}"
            _end(folder, self.number, told)
            raise
        finally:
            _close_logs(folder)
        _end(folder, self.number, told)

    def checkpoint(self) -> Any:
        """Return what goes on after the queue, for submitit: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _work(self, folder: JobFolder, stop: Stop) -> None:
        submitted = folder.submitted()
        if submitted is None:
            raise EngineError(f"{folder.path}: it does not say what is to be done")
        last = ""
        last_told = 0.0

        def report(text: str) -> None:
            nonlocal last, last_told
            last = text
            if time.monotonic() - last_told >= PROGRESS_EVERY_S:
                folder.write_progress(self.number, text)
                last_told = time.monotonic()

        function(submitted.function)(submitted.works[self.number].text, stop, report)
        if last:
            folder.write_progress(self.number, last)


def function(name: str) -> Function:
    """Return the function of ours that `module:function` names."""
    module, _, attribute = name.partition(":")
    if not module.startswith(OURS):
        raise EngineError(f"{name} is not a function of actstore or trainer")
    found: Function = getattr(importlib.import_module(module), attribute)
    return found


@contextlib.contextmanager
def _signals() -> Iterator[tuple[Stop, int | None]]:
    """Note signals inside the `with`, also the one that means: time is nearly up.

    The second value is that signal; None where submitit listens to none.
    """
    with signals() as stop:
        number = _time_is_up()
        if number is None:
            yield stop, None
            return
        before = signal.signal(number, stop.receive)
        try:
            yield stop, number
        finally:
            signal.signal(number, before)


def _time_is_up() -> int | None:
    from submitit import JobEnvironment

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    is_heard = callable(signal.getsignal(number))
    return number if is_heard else None


def _check_requeues() -> None:
    if int(os.environ.get(RESTARTS, "0")) >= MOST_REQUEUES:
        raise EngineError(
            f"its time was up {MOST_REQUEUES} times; give jobs more (--time)"
        )


def _requeue() -> None:
    """Put this job into the queue again, and end the process."""
    import submitit

    environment = submitit.JobEnvironment()
    environment._requeue(MOST_REQUEUES)
    raise SystemExit(0)


def _end(folder: JobFolder, number: int, error: str | None) -> None:
    import submitit

    job = submitit.JobEnvironment().job_id
    folder.write_outcome(number, JobOutcome(job=job, error=error))


def _close_logs(folder: JobFolder) -> None:
    """Close the logs that submitit opens where the work is done in its process."""
    for handler in logging.getLogger().handlers:
        path = getattr(handler, "baseFilename", None)
        if path is not None and Path(path).parent == folder.path:
            handler.close()
