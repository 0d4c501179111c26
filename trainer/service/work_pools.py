"""Threads for what the event loop must not wait for, and answers that many ask for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from trainer.errors import BusyError

N_QUICK = 4
N_SLOW = 4
MOST_SLOW_WAITING = 64
FRESH_S = 0.5
MOST_ANSWERS = 512

P = ParamSpec("P")
T = TypeVar("T")


class WorkPools:
    """Threads: some for what is quick, others for what may take seconds."""

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(N_QUICK, "service-quick")
        self._slow = ThreadPoolExecutor(N_SLOW, "service-slow")
        self._n_slow = 0

    async def quick(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that looks into the queue, say."""
        return await _in(self._quick, lambda: work(*args, **kwargs))

    async def slow(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that opens stores or makes reports.

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

    def close(self) -> None:
        """End the threads, once they have done what they have begun."""
        self._quick.shutdown(cancel_futures=True)
        self._slow.shutdown(cancel_futures=True)


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
