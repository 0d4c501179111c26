"""Threads for what the event loop must not wait for, and answers that many ask for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from trainer.errors import BusyError
from trainer.service.run_reports import AT_ONCE, MOST_WAITING

N_QUICK = 4
N_SLOW = 4
# One is made while the others of these wait; more are refused by `Reports`.
N_REPORTS = AT_ONCE + MOST_WAITING
MOST_SLOW_WAITING = 64
FRESH_S = 0.5
MOST_ANSWERS = 512

P = ParamSpec("P")
T = TypeVar("T")


class WorkPools:
    """Threads: for what is quick, for what may take seconds, and for reports.

    A report may take a quarter of an hour: who asks for some keeps nobody from
    submitting runs. And a service that has much to do is ready still.
    """

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(N_QUICK, "service-quick")
        self._slow = ThreadPoolExecutor(N_SLOW, "service-slow")
        self._ready = ThreadPoolExecutor(1, "service-ready")
        self._reports = ThreadPoolExecutor(N_REPORTS, "service-reports")
        self._n_slow = 0

    async def quick(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that looks into the queue, say."""
        return await _in(self._quick, lambda: work(*args, **kwargs))

    async def slow(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that opens stores or looks into folders.

        Raises:
            BusyError: Too much of that waits already.
        """
        if self._n_slow >= MOST_SLOW_WAITING:
            raise BusyError("the service has too much to do; ask again in a moment")
        self._n_slow += 1
        try:
            return await _in(self._slow, lambda: work(*args, **kwargs))
        finally:
            self._n_slow -= 1

    async def ready(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that looks whether the service can work."""
        return await _in(self._ready, lambda: work(*args, **kwargs))

    async def report(
        self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a function returns that makes a report."""
        return await _in(self._reports, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """End the threads, once they have done what they have begun."""
        for pool in (self._quick, self._slow, self._ready, self._reports):
            pool.shutdown(cancel_futures=True)


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


class Answers:
    """Answers that are the same for all who ask within a moment.

    Pages ask again and again for the same; it is worked out once. Not for several
    threads.
    """

    def __init__(self, fresh_s: float = FRESH_S) -> None:
        self._fresh_s = fresh_s
        self._answers: OrderedDict[Any, tuple[float, asyncio.Future[bytes]]]
        self._answers = OrderedDict()

    async def get(self, key: Any, make: Callable[[], Any]) -> bytes:
        """Return the answer to a question.

        Args:
            key: The question.
            make: Makes the awaitable that gives the answer.
        """
        now = time.monotonic()
        began, answer = self._answers.get(key, (float("-inf"), None))
        if answer is None or now - began > self._fresh_s:
            answer = asyncio.ensure_future(make())
            self._answers.pop(key, None)
            self._answers[key] = (now, answer)
            while len(self._answers) > MOST_ANSWERS:
                self._answers.popitem(last=False)
        # One who leaves does not take the answer from others who wait for it.
        return await asyncio.shield(answer)

    def forget(self) -> None:
        """Forget all: something has changed."""
        self._answers.clear()
