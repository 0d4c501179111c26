"""Submits work to Slurm as an array of jobs, and waits for them.

What a job does is a function of ours and its JSON (`slurm_job.py`). Slurm is never the
record of what is done: a job that is lost is made up for by the same command, which
goes on from what lies in the store or in the runs. A command that is ended leaves its
jobs in the queue; given again, it waits for them.

For trying it without a cluster, submitit has stand-ins: `slurm:local` starts processes
of this machine, `slurm:debug` does the work in this process.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from actstore.engines.engine_option import EngineOptions
from actstore.engines.slurm_folder import JobFolder
from actstore.engines.slurm_queue import cancel, main_ids, queued
from actstore.engines.slurm_submit import (
    LocalJobs,
    imported_submitit,
    submit,
    submit_locally,
)
from actstore.errors import ClusterLostError, EngineError, SpecError
from actstore.machine.stop_signals import Stopped
from schemas.slurm import JobOutcome, JobWork, SubmittedJobs

LOOK_S = 2.0  # between two looks at the jobs' folder
ASK_QUEUE_S = 20.0  # between two questions to Slurm, which many users ask
# Looks at the queue in which a job that has not said how it ended has to be missing:
# what it wrote may be seen late on a network's disk.
LOOKS_WITHOUT = 3
END_JOBS_S = 120.0  # how long jobs may take to save and end

Look = Callable[[list[str | None]], None]
"""Is given what each job has told of its progress, as JSON."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work that is divided among jobs.

    Attributes:
        what: What they do together, whatever their number: JSON.
        function: What each job calls, as `module:function` (see `slurm_job`).
        works: The work of each.
        short_name: A part of the jobs' names: `harvest`.
        at_once: How many of them may run at once; None: any number.
        gpu: Whether each needs a GPU.
        kept: What is kept of a job that failed, for messages.
    """

    what: str
    function: str
    works: Sequence[JobWork]
    short_name: str
    at_once: int | None
    gpu: bool
    kept: str


class Failed(NamedTuple):
    """A job that did not do its work.

    Attributes:
        work: What it was to do.
        outcome: How it ended.
        is_lost: Whether it ended without saying how.
    """

    work: JobWork
    outcome: JobOutcome
    is_lost: bool


def run_jobs(
    task: Task,
    options: EngineOptions,
    folder: JobFolder,
    look: Look,
    tell: Callable[[str], None],
) -> None:
    """Have jobs do a task, and wait until all of them have ended.

    Args:
        task: The work.
        options: How it is placed.
        folder: Where command and jobs know each other by; removed at the end, but for
            the logs where a job failed.
        look: Is given what the jobs tell, again and again.
        tell: Is given notes for the user.

    Raises:
        EngineError: submitit or Slurm is not there, Slurm refuses, or a job failed.
        ClusterLostError: Jobs were lost, and none failed.
        SpecError: Jobs of another call are still in the queue.
        Stopped: A signal came; Slurm's jobs go on.
    """
    imported_submitit()  # before anything is written
    stand_in = options.engine.address
    if stand_in is None:
        folder.make()
        submitted = _submitted(task, options, folder, tell)
        failed = _wait_for_slurm(submitted, folder, look)
    else:
        # Of this call alone: processes of one that was killed may still be there.
        folder = JobFolder(folder.path.with_name(f"{folder.path.name}-{os.getpid()}"))
        folder.make()
        submitted = _as_submitted(task, folder)
        folder.write_submitted(submitted)
        jobs = submit_locally(submitted, folder, stand_in, task.gpu, task.at_once)
        failed = _wait_locally(submitted, jobs, folder, look)
    if not failed:
        folder.wait_for_results(len(submitted.works))
        folder.remove()
        return
    folder.keep_logs()
    failed.sort(key=lambda one: one.is_lost)
    kind = ClusterLostError if failed[0].is_lost else EngineError
    raise kind(_told(failed, submitted, folder, task.kept))


def clear_left(folder: JobFolder) -> None:
    """Remove the folder of an earlier call's jobs, when none is in the queue any more.

    For where all is done that they were for.
    """
    earlier = folder.submitted() if folder.path.is_dir() else None
    if earlier is not None and queued(earlier.job_name) == {}:
        folder.remove()


def end_jobs(folder: JobFolder) -> None:
    """End the jobs of a folder, wait until none is in the queue, and remove it.

    Raises:
        ClusterLostError: Slurm gives no answer, or keeps them.
    """
    submitted = folder.submitted()
    until = time.monotonic() + END_JOBS_S
    is_asked = False  # once: at a second signal a job ends without saving
    while submitted is not None:
        left = queued(submitted.job_name)
        if left == {}:
            break
        if time.monotonic() > until:
            what = "squeue gives no answer" if left is None else main_ids(left)
            raise ClusterLostError(
                f"{folder.path}: its jobs could not be ended in Slurm's queue: {what}"
            )
        if left and not is_asked:
            cancel(left)
            is_asked = True
        time.sleep(LOOK_S)
    folder.remove()


def _as_submitted(task: Task, folder: JobFolder) -> SubmittedJobs:
    told = hashlib.sha256(f"{folder.path}\n{task.what}".encode()).hexdigest()
    return SubmittedJobs(
        what=task.what,
        job_name=f"actstore-{task.short_name}-{told[:12]}",
        function=task.function,
        works=tuple(task.works),
    )


def _submitted(
    task: Task,
    options: EngineOptions,
    folder: JobFolder,
    tell: Callable[[str], None],
) -> SubmittedJobs:
    """Submit the jobs, or find those that an earlier call has in the queue."""
    earlier = folder.submitted()
    if earlier is not None:
        left = queued(earlier.job_name)
        if left is None:
            raise EngineError(
                "squeue gives no answer, so it is not known whether the jobs that were"
                " submitted before are still in the queue; run the command where"
                " Slurm's commands work"
            )
        if left and earlier.what != task.what:
            raise SpecError(
                f"{folder.path}: jobs that do something else for the same output are in"
                f" the queue; wait for them, or end them: scancel {main_ids(left)}"
            )
        if left:
            tell(
                f"waiting for the jobs that were submitted before ({main_ids(left)});"
                " options of the engine are theirs"
            )
            return earlier
        folder.remove()
        folder.make()
    submitted = _as_submitted(task, folder)
    folder.write_submitted(submitted)
    job = submit(submitted, folder, options.slurm, task.gpu, task.at_once)
    number = "1 job" if len(task.works) == 1 else f"{len(task.works)} jobs"
    tell(f"submitted {number} to Slurm: {job}, log files in {folder.path}")
    return submitted


def _wait_for_slurm(
    submitted: SubmittedJobs, folder: JobFolder, look: Look
) -> list[Failed]:
    """Wait until each job has said how it ended, or has left the queue without."""
    waiting = _Waiting(submitted, folder, look)
    missed = dict.fromkeys(waiting.left, 0)
    known: dict[int, str] = {}
    asked = time.monotonic()
    try:
        while waiting.look():
            time.sleep(LOOK_S)
            if time.monotonic() - asked < ASK_QUEUE_S:
                continue
            in_queue = queued(submitted.job_name)
            asked = time.monotonic()
            if in_queue is None:
                continue
            known |= in_queue
            for number in list(waiting.left):
                missed[number] = 0 if number in in_queue else missed[number] + 1
                if missed[number] >= LOOKS_WITHOUT:
                    waiting.lost(number, known.get(number, "?"))
    except Stopped as stopped:
        jobs = main_ids(queued(submitted.job_name) or known)
        stopped.saved = (
            "Slurm's jobs go on without this command"
            + (f" (to end them: scancel {jobs})" if jobs else "")
            + "; given again, it waits for them"
        )
        raise
    return waiting.failed


def _wait_locally(
    submitted: SubmittedJobs, jobs: LocalJobs, folder: JobFolder, look: Look
) -> list[Failed]:
    """Wait for processes of this machine, which end with this one."""
    waiting = _Waiting(submitted, folder, look)
    try:
        while waiting.look():
            ended = jobs.ended()
            waiting.look()
            for number, job in ended.items():
                if number in waiting.left:
                    waiting.lost(number, job)
            time.sleep(jobs.look_s)
    except BaseException:
        jobs.end()
        folder.remove()
        raise
    jobs.wait()
    return waiting.failed


class _Waiting:
    """The jobs that have not ended yet, and those that failed."""

    def __init__(self, submitted: SubmittedJobs, folder: JobFolder, look: Look) -> None:
        self._submitted = submitted
        self._folder = folder
        self._look = look
        self._progress: list[str | None] = [None] * len(submitted.works)
        self.left = set(range(len(submitted.works)))
        self.failed: list[Failed] = []

    def look(self) -> bool:
        """Look at the jobs' folder; return whether any job is left."""
        for number in sorted(self.left):
            self._progress[number] = self._folder.progress(number)
            outcome = self._folder.outcome(number)
            if outcome is not None:
                self._end(number, outcome)
        self._look(self._progress)
        return bool(self.left)

    def lost(self, number: int, job: str) -> None:
        """Count a job as failed that ended without saying how."""
        why = (
            "it ended without saying why: it was cancelled or killed, or took more"
            " memory or time than it was given"
        )
        self._end(number, JobOutcome(job=job, error=why), is_lost=True)

    def _end(self, number: int, outcome: JobOutcome, *, is_lost: bool = False) -> None:
        self.left.discard(number)
        if outcome.error is not None:
            work = self._submitted.works[number]
            self.failed.append(Failed(work, outcome, is_lost))


def _told(
    failed: Sequence[Failed], submitted: SubmittedJobs, folder: JobFolder, kept: str
) -> str:
    """Return what is said where jobs failed: which, why, and where their logs are."""
    first = failed[0]
    n_jobs = len(submitted.works)
    others = f" ({len(failed)} of {n_jobs} jobs failed)" if n_jobs > 1 else ""
    log = folder.log(first.outcome.job)
    where = f"its log is {log}" if log.exists() else f"logs are in {folder.path}"
    return (
        f"{first.work.name}, job {first.outcome.job}: {first.outcome.error}; {where}"
        f"{others}; {kept}"
    )
