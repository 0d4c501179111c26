"""How often something may be done: by a token, by an address."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

MOST_KEYS = 20_000


class Rate(NamedTuple):
    """A rate.

    Attributes:
        per_s: How often, in the long run, in a second.
        burst: How often at once, after a pause.
    """

    per_s: float
    burst: float


class RateLimit:
    """Counts what is done by each of many, and says when one has to wait.

    What is left to each grows by `per_s` a second up to `burst`. Not for several
    threads.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(
        self, key: str, *, count: bool = True, now: float | None = None
    ) -> float:
        """Return the seconds that one has to wait; 0 where it may go on.

        Args:
            key: Who does it.
            count: Whether it is done, if it may be, or only asked.
            now: The time, by a clock that never jumps.
        """
        now = time.monotonic() if now is None else now
        left, then = self._left.pop(key, (self._rate.burst, now))
        left = min(self._rate.burst, left + (now - then) * self._rate.per_s)
        may = left >= 1
        if may and count:
            left -= 1
        self._left[key] = (left, now)
        # Who was seen last is forgotten last. All that is lost is a count.
        while len(self._left) > MOST_KEYS:
            self._left.popitem(last=False)
        return 0.0 if may else (1 - left) / self._rate.per_s
