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

from actstore.format.s3_failures import Failure
from actstore.machine import tried_again

Result = TypeVar("Result")

TRIES = 12  # of one request, the first included
FIRST_WAIT = 0.1  # seconds
LONGEST_WAIT = 15.0
LONGEST = 120.0  # seconds from the first try, after which no other one begins
# A place that nobody has reached before may be a wrong address: it is not waited for.
TRIES_UNREACHED = 2
TRIES_UNANSWERED = 5  # somebody is there, and breaks off or says nothing
LONGEST_UNANSWERED = 20.0  # seconds
TRIES_EXPIRED = 3


class Retries:
    """Tries requests to one place again. Safe to use from several threads."""

    def __init__(
        self,
        failure_of: Callable[[Exception], Failure | None],
        renew: Callable[[], bool],
    ) -> None:
        """Make it.

        Args:
            failure_of: Tells what an error means; None: it is not of the place.
            renew: Looks for new credentials, and returns whether there are others;
                called where those that were used have expired or are not valid.
        """
        self._failure_of = failure_of
        self._renew = renew
        self._reached = threading.Event()
        self._renewals = 0
        self._renewing = threading.Lock()
        self._jitter = random.Random()

    def run(self, request: Callable[[], Result]) -> Result:
        """Return what a request gives, after as many tries as it takes.

        Raises:
            Exception: What the last try raised.
        """
        began = time.monotonic()
        tries = 0
        while True:
            renewals = self._renewals
            try:
                result = request()
            except Exception as error:
                tries += 1
                failure = self._failure_of(error)
                if failure is None:
                    raise
                if failure.is_of_s3:
                    self._reached.set()
                most, seconds = self._bounds(failure)
                if tries >= most or time.monotonic() - began > seconds:
                    raise
                if failure.kind in {"expired", "not valid"}:
                    others = self._find_others(renewals)
                    if failure.kind == "not valid" and not others:
                        raise
                tried_again.count(failure.name)
            else:
                self._reached.set()
                return result
            time.sleep(self._wait(tries))

    @property
    def reached(self) -> bool:
        """True once the place has answered."""
        return self._reached.is_set()

    def _bounds(self, failure: Failure) -> tuple[int, float]:
        """Return how often a request is tried that fails so, and for how many seconds.

        After so many seconds no other try begins.
        """
        if failure.kind in {"again", "unreached"}:
            if self.reached:
                return TRIES, LONGEST
            if failure.kind == "unreached":
                return TRIES_UNREACHED, LONGEST
            return TRIES_UNANSWERED, LONGEST_UNANSWERED
        most = TRIES_EXPIRED if failure.kind in {"expired", "not valid"} else 1
        return most, LONGEST

    def _find_others(self, renewals: int) -> bool:
        """Look for other credentials; return whether there are any.

        renewals: how many there had been when the request was sent. Of many threads
        whose credentials have ended, one looks.
        """
        with self._renewing:
            if self._renewals == renewals and self._renew():
                self._renewals += 1
            return self._renewals != renewals

    def _wait(self, tries: int) -> float:
        """Return seconds to wait after so many tries."""
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1))
        return float(longest * self._jitter.uniform(0.5, 1))
