"""The memory that this process takes, as Linux tells it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def resident() -> int:
    """Return the bytes that this process has in memory now.

    0 where the system does not say.
    """
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes that this process had in memory since `reset_peak`.

    Or since it began, where that was not called; 0 where the system does not say.
    """
    return _status("VmHWM")


def reset_peak() -> int:
    """Let `peak` count from now on, and return the bytes in memory now."""
    # 5 resets the peak of the resident set (see proc(5)). A container may forbid it;
    # `peak` then counts from the beginning of the process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident()


def _status(name: str) -> int:
    """Return a line of `/proc/self/status` in bytes; the file has kB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(name):
            kilobytes = int(line.split()[1])
            return kilobytes * 1024
    return 0
