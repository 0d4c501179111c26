"""Which of a command's jobs are in Slurm's queue: waiting, running, or in between.

And their end, where somebody wants it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess

_ID = re.compile(r"(?P<job>[0-9]+)(?:_(?P<number>[0-9]+))?")
ASK_S = 60.0  # how long Slurm may take to answer


def queued(job_name: str) -> dict[int, str] | None:
    """Return the ids of the jobs in the queue, by their numbers in the array.

    A single job has number 0. None where Slurm gives no answer now, which says nothing
    about the jobs.

    job_name: The name that the jobs have in common, and no others.
    """
    asked = ["squeue", "--noheader", "--array", "--name", job_name, "--format", "%i"]
    try:
        answer = subprocess.run(
            asked, capture_output=True, text=True, check=False, timeout=ASK_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    found = {}
    for line in answer.stdout.split():
        match = _ID.fullmatch(line)
        if match is not None:
            found[int(match["number"] or 0)] = line
    return found


def cancel(jobs: dict[int, str]) -> None:
    """Ask Slurm to end jobs: each is sent a SIGTERM, and has half a minute to save."""
    ids = main_ids(jobs).split()
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ["scancel", *ids], capture_output=True, check=False, timeout=ASK_S
        )


def main_ids(jobs: dict[int, str]) -> str:
    """Return the ids that end all of some jobs with `scancel`."""
    return " ".join(sorted({job.partition("_")[0] for job in jobs.values()}))
