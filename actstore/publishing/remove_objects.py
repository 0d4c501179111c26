"""Removes the objects of a store from its folder, so that it can be gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actstore.format import object_keys
from actstore.format.storage import ListedObject, Storage
from actstore.publishing.store_keys import REMOVAL, StoreKeys, in_steps

# The folders that a store has at its top.
_TOP = re.compile(
    r"acts|norm|norms|scale|step|tokens|rows|blocks|claims|tokenizer|(units|columns)(-\d+)?"
)
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
    with ThreadPoolExecutor(THREADS) as pool:
        for step in in_steps(keys):
            for _ in pool.map(storage.delete, step):
                n_gone += 1
                progress(n_gone)
    at_the_end()
    storage.delete(REMOVAL)
    if storage.local is not None:
        remove_empty_folders(storage.local)


def remove_empty_folders(root: Path) -> None:
    """Remove the empty folders of a store, then its own if nothing else is in it."""
    tops = [top for top in root.glob("*") if _TOP.fullmatch(top.name)]
    for top in tops:
        # The deepest come first; links are not followed.
        for folder, _, _ in os.walk(top, topdown=False):
            _remove_if_empty(folder)
    _remove_if_empty(root)


def _remove_if_empty(folder: str | Path) -> None:
    with contextlib.suppress(OSError):  # something lies in it, or it is a link
        os.rmdir(folder)  # noqa: PTH106 (a string is at hand)
