"""Calls a function on many items at once, and gives the results in order.

Unlike `Executor.map` it runs only a few items ahead, so that however many there are,
few results wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield a function's results in the order of the items.

    Args:
        function: What is called; it may be called from several threads at a time.
        items: What it is called with, one after the other.
        threads: So many calls at a time; 1: in this thread, when a result is wanted.

    Raises:
        Exception: What a call raised, where its result would have come.
    """
    if threads == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
