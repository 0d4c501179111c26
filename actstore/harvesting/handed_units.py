"""The units that a worker is handed one by one, by the driver of an engine.

It stands where `Share` stands for a worker whose units are settled from the beginning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from schemas.harvest import Plan


class HandedUnits:
    """Units that come while the worker runs; safe to use from several threads.

    Attributes:
        number: Which worker it is, as the driver counts them; the first reads the
            corpus for the others as well.
        beyond: Units that the corpus does not reach.
    """

    is_alone = False

    def __init__(self, told_of_beyond: Callable[[], None]) -> None:
        """Have none yet; `told_of_beyond` is called when `beyond` has one more."""
        self._told_of_beyond = told_of_beyond
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque()
        self._has_ended = False
        self.number = 0
        self.beyond: deque[int] = deque()

    @property
    def is_reader(self) -> bool:
        """Whether this worker reads the corpus for the others as well."""
        return self.number == 0

    @property
    def has_ended(self) -> bool:
        """Whether the worker is to end."""
        return self._has_ended

    def hand(self, units: Sequence[int]) -> None:
        """Add units to those that wait."""
        with self._changed:
            self._waiting.extend(units)
            self._changed.notify_all()

    def end(self) -> None:
        """Let `units` end, even where some wait."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def units(self, _: Plan) -> Iterator[int]:
        """Give the units in the order in which they come; wait for more until `end`."""
        while True:
            with self._changed:
                while not self._waiting and not self._has_ended:
                    self._changed.wait()
                if self._has_ended:
                    return
                unit = self._waiting.popleft()
            yield unit

    def of_plan(self, _: Plan) -> range:
        """Return the units that are this worker's from the beginning: none."""
        return range(0)

    def passes_end(self, unit: int) -> bool:
        """Note a unit that the corpus does not reach; lower ones may still come."""
        self.beyond.append(unit)
        self._told_of_beyond()
        return True
