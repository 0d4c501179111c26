"""What the kill tests run in a process of its own: a copy, slow enough to be killed."""

from __future__ import annotations

import time
from typing import Any

import actstore
from actstore.format.storage import Storage


def copy_slowly(src: str, dst: str, part: dict[str, Any]) -> None:
    put = Storage.put

    def slow(self: Storage, key: str, data: Any) -> None:
        time.sleep(0.02)
        put(self, key, data)

    Storage.put = slow  # type: ignore[method-assign]
    actstore.copy(src, dst, threads=2, **part)
