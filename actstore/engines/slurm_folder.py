"""The folder through which a command and the jobs that it submitted know each other.

It has to be on a disk that all nodes see. `jobs.json` says what was submitted; each job
writes its progress and its outcome there, and its log. submitit keeps its files there,
too, which jobs execute: so nobody else may write in it.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from actstore.errors import EngineError
from schemas.base import Schema
from schemas.slurm import JobOutcome, SubmittedJobs

JOBS = "jobs.json"
MOST_BYTES = 64_000_000  # of a file here
RESULT_S = 10.0  # from a job's outcome to submitit's own note of it
S = TypeVar("S", bound=Schema)


def folder_beside(local: Path | None, name: str) -> Path:
    """Return where the folder lies: hidden, beside an output on a disk.

    Args:
        local: The output; None where it is no folder of this machine.
        name: What the folder in the home is called then.
    """
    if local is None:
        return Path.home() / ".actstore" / "slurm" / name
    whole = Path(os.path.abspath(local))  # noqa: PTH100 - links are kept as they are
    return whole.parent / f".{whole.name}.slurm"


class JobFolder:
    """The files in such a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make it, for this user alone; one that is there has to be such.

        Raises:
            EngineError: It is somebody else's, or others may write in it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            found = self.path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if not is_ours or found.st_mode & 0o077:
                raise EngineError(
                    f"{self.path}: wanted a folder that only you may read and write,"
                    " since Slurm's jobs run what lies there; remove it"
                ) from None

    def submitted(self) -> SubmittedJobs | None:
        """Return what an earlier command submitted from here; None for nothing."""
        return _read(self.path / JOBS, SubmittedJobs)

    def write_submitted(self, jobs: SubmittedJobs) -> None:
        """Note what is submitted from here."""
        write_whole(self.path / JOBS, jobs.to_json())

    def outcome(self, number: int) -> JobOutcome | None:
        """Return how a job has ended; None while it has not."""
        return _read(self.path / f"{number}.outcome.json", JobOutcome)

    def write_outcome(self, number: int, outcome: JobOutcome) -> None:
        """Note how a job has ended."""
        write_whole(self.path / f"{number}.outcome.json", outcome.to_json())

    def progress(self, number: int) -> str | None:
        """Return what a job has told of its progress; None for nothing yet."""
        return _text(self.path / f"{number}.progress.json")

    def write_progress(self, number: int, text: str) -> None:
        """Note the progress of a job."""
        write_whole(self.path / f"{number}.progress.json", text)

    def log(self, job: str) -> Path:
        """Return where the log of a job lies."""
        return self.path / f"{job}_0_log.out"

    def logs(self) -> list[Path]:
        """Return the logs that are there, the newest last."""
        found = [*self.path.glob("*_log.out"), *self.path.glob("*_log.err")]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def keep_logs(self) -> None:
        """Remove all but the logs."""
        kept = set(self.logs())
        for path in self.path.iterdir():
            if path not in kept:
                path.unlink()

    def wait_for_results(self, n_jobs: int) -> None:
        """Give jobs that have said how they ended the time to end."""
        until = time.monotonic() + RESULT_S
        while len(list(self.path.glob("*_result.pkl"))) < n_jobs:
            if time.monotonic() > until:
                return
            time.sleep(0.1)

    def remove(self) -> None:
        """Remove it, as far as a network's disk lets go of what was just closed."""
        shutil.rmtree(self.path, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file such that a reader sees all of it, or what was there before."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _text(path: Path) -> str | None:
    try:
        with path.open() as file:
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        return None


def _read(path: Path, schema: type[S]) -> S | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return schema.model_validate_json(text)
    except ValidationError:
        raise EngineError(
            f"{path}: it is not what a job or a command writes there; remove"
            f" {path.parent} once no job of it is left (squeue --me)"
        ) from None
