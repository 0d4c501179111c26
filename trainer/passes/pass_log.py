"""The logs of passes: what their processes print, bounded in size and number."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FOLDER = "logs"
MOST_BYTES = 1 << 20
KEPT_BYTES = 1 << 16  # of a log that has become too large
MOST_LOGS = 200


def log_path(state: Path, lease_id: str) -> Path:
    """Return where a pass' process prints to."""
    return state / FOLDER / f"{lease_id}.log"


def begin_log(state: Path, lease_id: str) -> Path:
    """Make an empty log; of the older ones, those beyond `MOST_LOGS` are removed."""
    path = log_path(state, lease_id)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    by_age = sorted(path.parent.glob("*.log"), key=_changed)
    for old in by_age[: max(0, len(by_age) + 1 - MOST_LOGS)]:
        old.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return path


def trim(path: Path) -> None:
    """Keep the end of a log that has become too large.

    Whoever prints to it appends, and so goes on behind that end.
    """
    with contextlib.suppress(OSError), path.open("r+b") as log:
        if log.seek(0, os.SEEK_END) <= MOST_BYTES:
            return
        log.seek(-KEPT_BYTES, os.SEEK_END)
        end = log.read()
        log.seek(0)
        log.write(b"[what came before is left out]\n" + end)
        log.truncate()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
