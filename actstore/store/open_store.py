"""Opening a store, finished or still being harvested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from actstore.store.store import Store


def open(  # noqa: A001
    url: str | Path, options: dict[str, Any] | None = None, *, follow: bool = False
) -> Store:
    """Open a finished store at any fsspec URL; `options` go to the file system.

    With `follow`, a store that is still being harvested: waits until its first group of
    units is committed, and can be streamed with `StreamSpec(follow=True)` (see
    `store/followed.py`).

    Raises NotAStoreError, UnfinishedError (a harvest that has not ended),
    FormatVersionError (written by a newer actstore) or CorruptError.
    """
    if follow:
        from actstore.store.followed import open_followed

        return open_followed(url, options)
    storage = Storage(str(url), options)
    store = Store(storage, read_manifest(storage))
    store.check()
    return store
