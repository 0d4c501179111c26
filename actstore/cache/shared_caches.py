"""The caches that are open in this process: one for each folder."""

from __future__ import annotations

import atexit
import os
import threading

from actstore.cache.local_cache import LocalCache
from actstore.console.user_warnings import warn
from actstore.errors import CacheWarning, StorageError

_open: dict[str, LocalCache] = {}
_turn = threading.Lock()


def shared_cache(folder: str, size: int | None = None) -> LocalCache | None:
    """Return the cache in a folder, opened once for this process.

    It is closed when the process ends.

    Args:
        folder: The folder, on a disk of this machine.
        size: As for `LocalCache`; another size than before holds from now on.

    Returns:
        The cache; None where the folder cannot be used, of which a warning tells.

    Raises:
        SpecError: The folder holds something else, or the size is too small.
    """
    path = os.path.realpath(folder)
    with _turn:
        cache = _open.get(path)
        try:
            if cache is None:
                cache = _open[path] = LocalCache(path, size)
            elif size not in {None, cache.size}:
                cache.resize(size)
        except StorageError as error:
            warn(f"{error}; reading goes on without it", CacheWarning)
            return None
        return cache


def close_all() -> None:
    """Close every cache that this process has open."""
    with _turn:
        for cache in _open.values():
            cache.close()
        _open.clear()


atexit.register(close_all)
