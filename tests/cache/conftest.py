from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actstore.cache.local_cache import LocalCache
from tests.cache.known_bytes import SIZE, Reader

Open = Callable[..., Reader]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(folder: Path) -> Iterator[Open]:
    """Opens the cache in `folder`, as a process would; all are closed at the end."""
    caches: list[LocalCache] = []

    def open_cache(size: int | None = SIZE) -> Reader:
        cache = LocalCache(folder, size)
        caches.append(cache)
        return Reader(cache)

    yield open_cache
    for cache in caches:
        cache.close()
