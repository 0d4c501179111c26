"""Tries a request again where another try can help, so often and so long.

Waits grow twofold from try to try, and are drawn at random between the half and the
whole of that, so that many workers do not come back at the same instant.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from actstore.format.s3_failures import Failure, Kind
from actstore.machine import tried_again

Result = TypeVar("Result")

TRIES = 12  # of one request, the first included
FIRST_WAIT = 0.1  # seconds
LONGEST_WAIT = 15.0
LONGEST = 120.0  # seconds from the first try, after which no other one begins
# A place that nobody has reached before may be a wrong address: it is not waited for.
TRIES_UNREACHED = 2
TRIES_EXPIRED = 3


class Retries:
    """Tries requests to one place again. Safe to use from several threads."""

    def __init__(
        self,
        failure_of: Callable[[Exception], Failure | None],
        renew: Callable[[], None],
    ) -> None:
        """Make it.

        Args:
            failure_of: Tells what an error means; None: it is not of the place.
            renew: Looks for new credentials; called where they have expired.
        """
        self._failure_of = failure_of
        self._renew = renew
        self._reached = threading.Event()
        self._jitter = random.Random()

    def run(self, request: Callable[[], Result]) -> Result:
        """Return what a request gives, after as many tries as it takes.

        Raises:
            Exception: What the last try raised.
        """
        began = time.monotonic()
        tries = 0
        while True:
            try:
                result = request()
            except Exception as error:
                tries += 1
                failure = self._failure_of(error)
                if failure is None:
                    raise
                if failure.status is not None:
                    self._reached.set()
                late = time.monotonic() - began > LONGEST
                if tries >= self._most_tries(failure.kind) or late:
                    raise
                if failure.kind == "expired":
                    self._renew()
                tried_again.count(failure.name)
            else:
                self._reached.set()
                return result
            time.sleep(self._wait(tries))

    def _most_tries(self, kind: Kind) -> int:
        """Return how often a request is tried that fails in such a way."""
        if kind == "again" or (kind == "unreached" and self._reached.is_set()):
            return TRIES
        return {"unreached": TRIES_UNREACHED, "expired": TRIES_EXPIRED}.get(kind, 1)

    def _wait(self, tries: int) -> float:
        """Return seconds to wait after so many tries."""
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1))
        return float(longest * self._jitter.uniform(0.5, 1))
