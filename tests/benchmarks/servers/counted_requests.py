"""Counts the requests that our code makes of a storage."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from actstore.format.storage import Storage

READS = ("read", "read_ranges", "size", "exists", "list")
WRITES = ("put", "create", "delete")


class Requests:
    """Counts requests, by the method of `Storage` that makes them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        for name in READS + WRITES:
            self._wrap(name)

    def _wrap(self, name: str) -> None:
        plain: Callable[..., Any] = getattr(Storage, name)

        def counted(storage: Storage, *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.counts[name] += len(args[1]) if name == "read_ranges" else 1
            return plain(storage, *args, **kwargs)

        setattr(Storage, name, counted)

    def taken(self, names: Sequence[str]) -> int:
        """Requests since the last time."""
        n = sum(self.counts[name] for name in names)
        self.counts.clear()
        return n
