"""Writes whole files of a local folder, so that a reader never sees half of one.

A file is written under a temporary name, synced, and then given its own: fsspec's local
`mode="create"` would check first and open later.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

Buffers = bytes | Sequence[bytes | memoryview]
"""An object's bytes: in one piece, or in several that lie one after the other."""

TEMPORARY = ".tmp-"


def replace(path: Path, data: Buffers) -> None:
    """Write a file, or put it in the place of the one that is there."""
    with _temporary(path, data) as temporary:
        temporary.replace(path)


def create(path: Path, data: Buffers) -> bool:
    """Write a file only if there is none; return whether there was none."""
    with _temporary(path, data) as temporary:
        try:
            # Unlike a rename, it fails where there is a file by that name.
            os.link(temporary, path)
        except FileExistsError:
            return False
    _sync_folder(path.parent)
    return True


def is_temporary(key: str) -> bool:
    """Return whether a key is that of a temporary file."""
    return key.rsplit("/", 1)[-1].startswith(TEMPORARY)


@contextlib.contextmanager
def _temporary(path: Path, data: Buffers) -> Iterator[Path]:
    """Write a synced file beside `path`; it is gone afterwards, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            for part in [data] if isinstance(data, bytes) else data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries: a new name then outlives a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
