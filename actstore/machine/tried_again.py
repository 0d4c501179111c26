"""Counts the requests to object stores that this process had to try again.

A command says at its end how many there were, and why.
"""

from __future__ import annotations

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count(why: str) -> None:
    """Note that a request is tried again."""
    with _lock:
        _counts[why] += 1


def counts() -> Counter[str]:
    """Return how many requests were tried again until now, by reason."""
    with _lock:
        return Counter(_counts)


def summary(since: Counter[str]) -> str | None:
    """Return a line that says what was tried again since an earlier `counts`.

    None: nothing was.
    """
    now = counts() - since
    if not now:
        return None
    reasons = ", ".join(f"{n} {why}" for why, n in now.most_common())
    total = now.total()
    plural = "request was" if total == 1 else "requests were"
    return f"{total:,} {plural} tried again: {reasons}"
