"""Has a pass trained by a job of Slurm's; this process waits, and keeps the lease.

Slurm lets a job go on whose process here is gone. So before anything is submitted, jobs
of passes whose lease nobody holds any more are ended: nobody trains a run twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from actstore.engines.engine_option import Engine, EngineOptions
from actstore.engines.slurm_engine import Task, end_jobs, run_jobs
from actstore.engines.slurm_folder import JobFolder
from actstore.machine.stop_signals import Stopped
from schemas.service import PassSpec
from schemas.slurm import JobWork
from trainer.training.step_loop import Report
from trainer.training.sweep_on_slurm import progress_told

Held = Callable[[], Collection[str]]
FOLDER = "slurm"  # in the service's folder of state, one for each lease
KEPT = "what was saved is kept"
LOGS_DAYS = 30  # logs of jobs that failed are kept so long


def train_on_slurm(
    spec: PassSpec, state: Path, lease_id: str, held: Held, report: Report
) -> None:
    """Train a pass by one job, and wait for it.

    Args:
        spec: The pass, whose runs and store all nodes have to see.
        state: The service's folder of state, which all nodes have to see as well.
        lease_id: The pass' lease.
        held: Tells the leases that are held.
        report: Is given the progress.

    Raises:
        EngineError: Slurm refuses, or the job failed.
        ClusterLostError: The job is lost, or Slurm gives no answer.
        Stopped: There was a signal; what was trained is saved, and the job has ended.
    """
    jobs = state.absolute() / FOLDER
    _end_left(jobs, held)
    text = spec.to_json()
    task = Task(
        what=text,
        function="trainer.training.sweep_on_slurm:train_share",
        works=[JobWork(name="the pass", text=text)],
        short_name="pass",
        at_once=None,
        gpu=spec.device != "cpu",
        kept=KEPT,
    )
    folder = JobFolder(jobs / lease_id)
    options = EngineOptions(Engine("slurm"), 1, {})
    try:
        run_jobs(task, options, folder, _look(report), print)
    except Stopped:
        end_jobs(folder)
        raise


def _look(report: Report) -> Callable[[Sequence[str | None]], None]:
    """Return what passes the job's progress on."""

    def look(texts: Sequence[str | None]) -> None:
        for text in texts:
            if text is not None:
                report(progress_told(text))

    return look


def _end_left(jobs: Path, held: Held) -> None:
    """End jobs of passes that nobody waits for any more; remove old logs."""
    if not jobs.is_dir():
        return
    folders = list(jobs.iterdir())
    # Asked for after that: a folder is made by who holds its lease, so that one which
    # another pass makes meanwhile is not taken for one that is left.
    leases = held()
    for path in folders:
        folder = JobFolder(path)
        if path.name in leases:
            continue
        age_s = time.time() - path.stat().st_mtime
        if folder.submitted() is not None or age_s > LOGS_DAYS * 24 * 3600:
            end_jobs(folder)
