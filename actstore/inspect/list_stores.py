"""Lists the stores that lie at a URL and directly below it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import ActstoreError, NotAStoreError
from actstore.format import object_keys
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage

READERS = 16  # folders that are looked at at a time


class Entry(NamedTuple):
    """One store.

    Attributes:
        url: Where it lies.
        finished: Whether it can be opened.
        text: A line about it.
    """

    url: str
    finished: bool
    text: str


@checked(url=arguments.folder, options=optional(arguments.mapping))
def stores(
    url: str | os.PathLike[str], options: dict[str, Any] | None = None
) -> list[Entry]:
    """Return the stores at a URL itself and in its folders, sorted by name.

    Unfinished ones say so.

    Args:
        url: A folder, or any URL that fsspec knows.
        options: For the file system, such as credentials.

    Raises:
        NotAStoreError: There is no such folder.
        StorageError: The place cannot be reached.

    Examples:
        >>> import actstore
        >>> [(entry.url, entry.finished) for entry in actstore.stores("stores")]
        [('stores/small', True)]
    """
    root = Storage(url, options)
    # Not deeper: on an object store every folder is a few requests.
    children = [root.child(name) for name in root.folders()]
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(_entry, (root, *children)))
    entries = [entry for entry in found if entry is not None]
    # A folder without stores is no error; a path with a slip in it is one.
    if not entries and not root.is_folder():
        raise NotAStoreError(
            f"{url}: wanted a folder that has stores, but there is no such folder;"
            " check the URL"
        )
    return entries


def _entry(storage: Storage) -> Entry | None:
    """Return the store that lies there, or None."""
    # A harvest writes its plan first and its manifest last, a copy its record first.
    if not storage.exists(object_keys.MANIFEST):
        if storage.exists(object_keys.COPY):
            return Entry(storage.url, False, "unfinished copy")
        if not storage.exists(object_keys.plan_key()):
            return None
        return Entry(storage.url, False, "unfinished")
    try:
        manifest = read_manifest(storage)
    except ActstoreError as error:
        # One store that cannot be read must not hide the others.
        return Entry(storage.url, False, str(error))
    figures = (
        manifest.spec.model.name,
        f"{len(manifest.sites)} sites",
        f"{manifest.n_rows:,} rows",
        f"{manifest.n_bytes / 1e6:,.1f} MB",
        manifest.content_id[:12],
    )
    return Entry(storage.url, True, "  ".join(figures))
