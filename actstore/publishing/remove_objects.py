"""Removes the objects of a store from its folder, so that it can be gone on with."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actstore.format import object_keys
from actstore.format.storage import ListedObject, Storage
from actstore.publishing.store_keys import REMOVAL, StoreKeys, in_steps

THREADS = 16  # objects that are removed at a time


def objects_of(storage: Storage, keys: StoreKeys) -> list[ListedObject]:
    """Return the objects of a store that are there."""
    return [one for one in storage.objects() if one.key in keys]


def is_being_removed(storage: Storage) -> bool:
    """Return whether a removal has begun that has not ended."""
    return storage.exists(REMOVAL) and not storage.exists(object_keys.MANIFEST)


def remove_objects(
    storage: Storage,
    keys: Iterable[str],
    progress: Callable[[int], None],
    at_the_end: Callable[[], None] = lambda: None,
) -> None:
    """Remove a store's objects, those first without which it is no store.

    Args:
        storage: The store's folder.
        keys: Its objects.
        progress: Is given how many are gone, as they go.
        at_the_end: Is called before the mark goes that a removal was begun: if it
            fails, the same removal goes on from there.
    """
    marked = json.dumps({"format": "actstore", "removing": True}) + "\n"
    storage.put(REMOVAL, marked.encode())
    n_gone = 0
    folders: set[str] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        for step in in_steps(keys):
            for key in pool.map(lambda key: _removed(storage, key), step):
                n_gone += 1
                folders.add(key.rpartition("/")[0])
                progress(n_gone)
    at_the_end()
    storage.delete(REMOVAL)
    if storage.local is not None:
        remove_empty_folders(storage.local, folders)


def remove_empty_folders(root: Path, folders: Iterable[str]) -> None:
    """Remove folders that have become empty, and those above them, up to `root`."""
    parents = {
        root.joinpath(*Path(folder).parts[:depth])
        for folder in folders
        for depth in range(len(Path(folder).parts) + 1)
    }
    # the deepest first
    for folder in sorted(parents, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):  # it is not empty, or gone already
            if not folder.is_symlink():
                os.rmdir(folder)  # noqa: PTH106 (it fails where anything lies in it)


def _removed(storage: Storage, key: str) -> str:
    storage.delete(key)
    return key
