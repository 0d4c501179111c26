"""Objects of a place that is not a folder of this machine.

`RemoteObjects` is what `Storage` asks of such a place. `FsspecObjects` does it with any
file system of fsspec; `s3_objects.py` has its own way for S3. Paths are those of the
file system, with the bucket first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from actstore.errors import StoreError
from actstore.format.local_files import ListedObject, PendingUpload
from actstore.format.storage_errors import typed, without_secrets

Part = bytes | memoryview
"""Bytes that were read; a memoryview is of bytes that no one changes."""


# What file systems of fsspec call the option that names a server.
_SERVER_OPTIONS = ("endpoint_url", "endpoint", "host", "base_url", "account_name")
_USER = re.compile(r"[^/@\s]*@")


class TooLarge(Exception):  # noqa: N818 (it never leaves `Storage`)
    """An object has more bytes than are wanted."""


class RemoteObjects(Protocol):
    """The operations that `Storage` asks of a place; errors are of its clients."""

    def read(self, path: str, limit: int | None) -> bytes: ...
    def ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Part]: ...
    def size(self, path: str) -> int: ...
    def exists(self, path: str) -> bool: ...
    def find(self, path: str) -> dict[str, ListedObject]: ...
    def folders(self, path: str) -> list[str]: ...
    def is_folder(self, path: str) -> bool: ...
    def is_empty(self, path: str) -> bool: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def delete(self, path: str) -> None: ...
    def uploads(self, path: str) -> list[PendingUpload]: ...
    def abort(self, path: str, upload: str) -> None: ...
    def told(
        self, error: Exception, where: str, *, writing: bool
    ) -> StoreError | None: ...

    @property
    def creates(self) -> bool:
        """True where creating is exclusive, as far as it is known."""
        ...

    @property
    def server(self) -> str:
        """The server that answers, without credentials; "" where there is but one."""
        ...


class FsspecObjects:
    """Objects in any file system of fsspec."""

    def __init__(self, fs: Any, options: Mapping[str, Any]) -> None:
        """Make it; options: those of the file system, with the secrets among them."""
        self.fs = fs
        self.options = dict(options)
        self.creates = True

    @property
    def server(self) -> str:
        given = [str(self.options.get(name) or "") for name in _SERVER_OPTIONS]
        return _USER.sub("", " ".join(given)).strip()

    def read(self, path: str, limit: int | None) -> bytes:
        """Return an object's bytes; raises TooLarge."""
        if limit is None:
            whole: bytes = self.fs.cat_file(path)
            return whole
        try:
            data: bytes = self.fs.cat_file(path, start=0, end=limit + 1)
        except FileNotFoundError:
            raise
        except Exception:
            # a range of nothing is an error in some places
            if self.fs.size(path) == 0:
                return b""
            raise
        if len(data) > limit:
            raise TooLarge
        return data

    def ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Part]:
        """Return (offset, length) ranges; a negative offset counts from the end."""
        starts = [offset for offset, _ in ranges]
        # The last 100 bytes are from -100 to None: an end of 0 would mean nothing.
        ends = [
            None if offset < 0 and offset + n == 0 else offset + n
            for offset, n in ranges
        ]
        paths = [path] * len(ranges)
        parts: list[Part] = self.fs.cat_ranges(paths, starts, ends, on_error="raise")
        return parts

    def size(self, path: str) -> int:
        return int(self.fs.size(path))

    def exists(self, path: str) -> bool:
        return bool(self.fs.isfile(path))

    def find(self, path: str) -> dict[str, ListedObject]:
        """Return all objects under a folder, by path."""
        found = self.fs.find(path, detail=True)
        return {name: _listed(name, info) for name, info in found.items()}

    def folders(self, path: str) -> list[str]:
        """Return the paths of the folders directly below one."""
        entries = self.fs.ls(path, detail=True)
        return [entry["name"] for entry in entries if entry["type"] == "directory"]

    def is_folder(self, path: str) -> bool:
        return bool(self.fs.isdir(path))

    def is_empty(self, path: str) -> bool:
        try:
            return not self.fs.find(path)
        except FileNotFoundError:
            return True

    def put(self, path: str, data: bytes) -> None:
        # An object store shows an object when all of it has come.
        self.fs.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object where there is none; return whether there was none."""
        try:
            self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def delete(self, path: str) -> None:
        self.fs.rm_file(path)

    def uploads(self, path: str) -> list[PendingUpload]:  # noqa: ARG002 (S3's do)
        """Return the uploads that have not ended under a folder: none are known."""
        return []

    def abort(self, path: str, upload: str) -> None:
        """End an upload, and remove its parts."""
        # Nobody gets here: `uploads` gave none to end.
        raise NotImplementedError(f"{path}: {upload}")

    def told(self, error: Exception, where: str, *, writing: bool) -> StoreError | None:
        """Return the error that the user is told; None: the place is not to blame."""
        told = typed(error, where, None, writing=writing)
        if told is None:
            return None
        return type(told)(without_secrets(str(told), self.options))


def _listed(path: str, info: dict[str, Any]) -> ListedObject:
    """Return what fsspec says of an object."""
    modified = None
    for name in ("LastModified", "mtime", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            modified = value.timestamp()
        elif isinstance(value, (int, float)):
            modified = float(value)
        if modified is not None:
            break
    return ListedObject(path, int(info.get("size") or 0), modified)
