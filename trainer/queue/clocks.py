"""Clocks: one to measure by, which never jumps, and one to tell the time by."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Return seconds on a clock that all processes of the machine share.

        It does not jump when the time of day is set, and stands still while the machine
        sleeps: a laptop that wakes finds its leases alive. It begins again when the
        machine does.
        """
        return time.monotonic()

    def boot(self) -> str:
        """Return what tells this start of the machine from others; "" if not known."""
        try:
            return _BOOT_ID.read_text().strip()
        except OSError:
            return ""

    def seconds(self) -> float:
        """Return the time of day, in seconds since 1970."""
        return time.time()

    def text(self) -> str:
        """Return the time of day as records have it."""
        now = datetime.fromtimestamp(self.seconds(), UTC)
        return now.isoformat(timespec="seconds")
