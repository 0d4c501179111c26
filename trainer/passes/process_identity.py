"""Tells a process from a later one of the same number, and ends one that is left over.

A process that is gone cannot write a run any more: that is what lets another one begin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

_WAIT_S = 5.0


def process_start(pid: int) -> str | None:
    """Return when a process began, in the system's own words; None where it is gone.

    One that has ended and that nobody has asked about is gone too.
    """
    if not Path("/proc/self/stat").exists():
        return _from_ps(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # "17 (name, which may have blanks) S 1 ...": the state, and 19 fields on the start
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"} and not _has_other_threads(pid):
        return None
    return fields[19]


def lives(pid: int, start: str | None) -> bool:
    """Return whether a process is there still, and not another one of its number."""
    now = process_start(pid)
    return now is not None and (start is None or now == start)


def end_process(pid: int, start: str | None) -> bool:
    """End a process and those that it began, at once; return whether it is gone."""
    if not lives(pid, start):
        return True
    # it leads a group of its own, unless it has only just begun
    for end in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            end(pid, signal.SIGKILL)
    give_up = time.monotonic() + _WAIT_S
    while lives(pid, start):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def _has_other_threads(pid: int) -> bool:
    """Return whether threads are left of a process whose first one has ended.

    Until these have ended as well, its files are open and its locks held.
    """
    try:
        return len([*Path(f"/proc/{pid}/task").iterdir()]) > 1
    except OSError:
        return False


def _from_ps(pid: int) -> str | None:
    asked = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, start = asked.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()
