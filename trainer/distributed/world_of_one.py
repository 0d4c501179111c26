"""A process alone, where several would exchange numbers: it gets back its own."""

from __future__ import annotations

from typing import Any


class OneWorld:
    """The world of a process that trains alone, for what `processes.World` is asked."""

    rank = 0
    size = 1
    lead = True

    def total(self, n: int) -> int:
        """Return the sum of a number over processes: itself."""
        return n

    def least(self, value: float) -> float:
        """Return the smallest of a number over processes: itself."""
        return value

    def shared(self, value: Any) -> Any:
        """Return the lead's value: the value itself."""
        return value


ONE_WORLD = OneWorld()
