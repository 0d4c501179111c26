"""Hands jobs to Slurm, or to submitit's stand-ins for it on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from actstore.engines.slurm_folder import JobFolder
from actstore.engines.slurm_job import SlurmJob
from actstore.errors import EngineError, first_line
from schemas.slurm import SubmittedJobs

CPUS = 4  # of each job
SIGNAL_S = 120  # so long before its time is up a job saves
NO_LIMIT_MINUTES = 60 * 24 * 365
END_S = 30.0  # how long a local process may take to save and end
# A line of the kind `sbatch: error: invalid partition specified: gpu`.
_REFUSED = re.compile(r"sbatch: (?:error|fatal): (?P<why>.+)")


def submit(
    submitted: SubmittedJobs,
    folder: JobFolder,
    options: Mapping[str, str],
    gpu: bool,
    at_once: int | None,
) -> str:
    """Submit jobs to Slurm as one array; return its id.

    Args:
        submitted: The jobs.
        folder: Theirs.
        options: `partition`, `time`, `account`.
        gpu: Whether each needs a GPU.
        at_once: How many may run at once; None: any number.

    Raises:
        EngineError: There is no Slurm here, or it refuses.
    """
    submitit = imported_submitit()
    n_jobs = len(submitted.works)
    try:
        executor = submitit.SlurmExecutor(folder=folder.path)
    except RuntimeError:
        folder.remove()
        raise EngineError(
            "Slurm's commands (sbatch, srun) are not here; run this where you submit"
            " jobs, or try it on this machine with --engine slurm:local"
        ) from None
    executor.update_parameters(
        **parameters(submitted.job_name, options, gpu, at_once or n_jobs)
    )
    try:
        jobs = _submit_all(executor, folder, n_jobs)
    except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
        folder.remove()
        refused = _REFUSED.search(str(error))
        why = refused["why"] if refused else first_line(error)
        raise EngineError(f"Slurm refuses the jobs: {why}") from None
    return jobs[0].job_id.partition("_")[0]  # type: ignore[no-any-return]


def parameters(
    job_name: str, options: Mapping[str, str], gpu: bool, at_once: int
) -> dict[str, Any]:
    """Return the options of sbatch, as submitit takes them; None: none is given.

    Others can be given as sbatch's own variables, such as SBATCH_QOS.
    """
    return {
        "job_name": job_name,
        "time": options.get("time"),
        "partition": options.get("partition"),
        "account": options.get("account"),
        "gpus_per_node": 1 if gpu else None,
        "cpus_per_task": CPUS,
        # srun no longer takes it from sbatch (Slurm 22.05 and newer)
        "srun_args": [f"--cpus-per-task={CPUS}"],
        "signal_delay_s": SIGNAL_S,
        "array_parallelism": at_once,
        "stderr_to_stdout": True,
        "wckey": None,
        # also after the failure of a node
        "additional_parameters": {"requeue": True},
    }


def _submit_all(executor: Any, folder: JobFolder, n_jobs: int) -> list[Any]:
    jobs = [SlurmJob(str(folder.path), number) for number in range(n_jobs)]
    if n_jobs == 1:
        return [executor.submit(jobs[0])]
    with executor.batch():
        return [executor.submit(job) for job in jobs]


class LocalJobs:
    """Jobs that run on this machine, so many at once."""

    look_s = 0.1  # between two looks at them

    def __init__(self, executor: Any, folder: JobFolder, n: int, at_once: int) -> None:
        self._executor = executor
        self._folder = folder
        self._at_once = at_once
        self._waiting = list(range(n))
        self._started: dict[int, Any] = {}

    def ended(self) -> dict[int, str]:
        """Return the ids of those that have ended, by number; start others for them."""
        ended = {n: job.job_id for n, job in self._started.items() if job.done()}
        n_free = self._at_once - (len(self._started) - len(ended))
        for number in self._waiting[:n_free]:
            job = SlurmJob(str(self._folder.path), number)
            self._started[number] = self._executor.submit(job)
        del self._waiting[:n_free]
        return ended

    def end(self) -> None:
        """End them, where they are processes: each saves what it can."""
        for process in self._processes():
            process.terminate()  # which submitit passes on to the one that works
        self.wait()

    def wait(self) -> None:
        """Wait for processes that are about to end."""
        for process in self._processes():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        started = [getattr(job, "_process", None) for job in self._started.values()]
        return [process for process in started if process is not None]


def submit_locally(
    submitted: SubmittedJobs,
    folder: JobFolder,
    stand_in: str,
    gpu: bool,
    at_once: int | None,
) -> LocalJobs:
    """Return jobs that are done on this machine, by processes or in this one.

    Args:
        submitted: The jobs.
        folder: Theirs.
        stand_in: `local`, or `debug`: one after the other, in this process.
        gpu: Whether they are given a GPU.
        at_once: How many processes at once; None: all of them.

    """
    submitit = imported_submitit()
    n_jobs = len(submitted.works)
    if stand_in == "debug":
        executor = submitit.DebugExecutor(folder=folder.path)
        return LocalJobs(executor, folder, n_jobs, 1)
    executor = submitit.LocalExecutor(folder=folder.path)
    executor.update_parameters(
        timeout_min=NO_LIMIT_MINUTES,
        gpus_per_node=int(gpu),
        stderr_to_stdout=True,
    )
    return LocalJobs(executor, folder, n_jobs, at_once or n_jobs)


def check_slurm_here() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        EngineError: submitit, or a command of Slurm's, is missing.
    """
    imported_submitit()
    for command in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise EngineError(
                f"Slurm's command {command} is not here; run this where you submit jobs"
            )


def imported_submitit() -> ModuleType:
    """Return submitit. Raises EngineError where it is not installed."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise EngineError(
            "--engine slurm needs submitit: pip install 'actstore[slurm]'"
        ) from None
    return submitit
