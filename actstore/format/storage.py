"""The place of a store's bytes, and the two ways to commit an object there.

A place is any fsspec URL, with its credentials.

`put` replaces an object as a whole; `create` makes it only where none is, atomically
(S3: `If-None-Match`; locally: a temporary file, fsync and `os.link`). A reader never
sees half an object. Nothing else in the project knows what kind of place a store lies
in.

What lies there may be someone else's: keys cannot lead out of the place, local files
are opened as in `local_files.py`, and `limit` bounds what is read.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3
from fsspec.implementations.local import LocalFileSystem

from actstore.errors import CorruptError, StorageError
from actstore.format import local_writes
from actstore.format.file_systems import (
    file_system,
    local_path,
    name_in_catalog,
    windows_path,
)
from actstore.format.local_files import (
    ListedObject,
    LocalFiles,
    OpenFile,
    PendingUpload,
    check_key,
)
from actstore.format.local_writes import TEMPORARY, Buffers, is_temporary
from actstore.format.remote_objects import (
    FsspecObjects,
    Part,
    RemoteObjects,
    TooLarge,
)
from actstore.format.s3_places import is_s3, s3_place
from actstore.format.storage_errors import typed
from actstore.format.storage_options import options_for

__all__ = ["Buffers", "ListedObject", "Part", "PendingUpload", "Storage"]

# A URL with a user's password, which would be written into logs and runs.
_PASSWORD = re.compile(r"^[\w+.-]+://[^/@]*:[^/@]+@")


class Storage:
    """The objects under one URL.

    Keys are relative, with `/`. Safe to use from several threads.

    All methods raise a StorageError for a place that cannot be reached, and ObjectError
    for an object that is not there.

    Attributes:
        url: As it was given, without slashes at its end.
        options: Options of the file system, such as credentials: those given, and for
            other keys those of the process (`storage_options.py`) where the place is
            not local.
        local: The folder, if it is one of this machine; else None.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        options: dict[str, Any] | None = None,
    ) -> None:
        text = str(url)
        bare = text.rstrip("/")
        # `memory://` and `file:///` are roots: their slashes belong to the protocol.
        is_root = bare.endswith(":") or not bare
        self.url = text if is_root else bare
        self.options = dict(options or {})
        self.local: Path | None = None
        if _PASSWORD.match(self.url):
            raise StorageError(
                "a URL with a password in it would be written into logs and runs; give"
                " the password as an option (--storage-options)"
            )
        why = windows_path(self.url) or name_in_catalog(self.url)
        if why is not None:
            raise StorageError(f"{self.url}: {why}")
        if local_path(self.url) is None:
            self.options = options_for(self.url, options)
        with self._guard(""):
            root = self._opened_place()
        self._root = root.rstrip("/")
        if isinstance(self._fs, LocalFileSystem):
            if self.options:
                raise StorageError(
                    f"{self.url}: a local folder takes no options, got"
                    f" {', '.join(self.options)}; leave them out"
                )
            self.local = Path(self._root or "/")
        self._files = LocalFiles(self._root)

    def _opened_place(self) -> str:
        """Open the file system; return the path in it that is the storage's root."""
        self._pid = os.getpid()
        self._remote: RemoteObjects | None = None
        if is_s3(self.url) and local_path(self.url) is None:
            self._remote, root = s3_place(self.url, self.options)
            self._fs: Any = None
            return root
        self._fs, root = file_system(self.url, **self.options)
        if not isinstance(self._fs, LocalFileSystem):
            self._remote = FsspecObjects(self._fs, self.options)
        return root

    @property
    def _there(self) -> RemoteObjects:
        """The objects of a place that is not local."""
        # Connections and threads of the process that this one was forked from are not
        # in this one.
        if self._pid != os.getpid():
            self._opened_place()
        assert self._remote is not None
        return self._remote

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def origin(self) -> str:
        """The URL with the server that answers there.

        Two servers may have buckets of one name.
        """
        server = "" if self.local is not None else self._there.server
        return f"{server} {self.url}".lstrip()

    def child(self, key: str) -> Storage:
        """Return the storage one folder down."""
        if self.url.endswith("://"):
            return Storage(self.url + key, self.options)
        return Storage(f"{self.url.rstrip('/')}/{key}", self.options)

    def read(self, key: str, limit: int | None = None) -> bytes:
        """Return the whole object.

        Raises:
            ObjectError: There is none.
            CorruptError: It has more than `limit` bytes; no more are read then.
        """
        if self.local is not None:
            with self.opened(key) as file:
                if limit is not None and file.size > limit:
                    raise CorruptError(
                        f"{self.url}/{key}: {file.size} bytes, wanted at most {limit}"
                    )
                return file.read()
        try:
            with self._guard(key):
                return self._there.read(self._path(key), limit)
        except TooLarge:
            raise CorruptError(
                f"{self.url}/{key}: more than {limit} bytes, wanted at most those"
            ) from None

    def digest(self, key: str, limit: int) -> tuple[int, str]:
        """Return size and blake3 digest of an object of at most `limit` bytes.

        A local one is never in memory as a whole.
        """
        state = blake3()
        if self.local is None:
            data = self.read(key, limit)
            return len(data), state.update(data).hexdigest()
        with self.opened(key) as file:
            if file.size > limit:
                raise CorruptError(
                    f"{self.url}/{key}: {file.size} bytes, wanted at most {limit}"
                )
            for part in file.parts():
                state.update(part)
            return file.size, state.hexdigest()

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[OpenFile]:
        """Open an object of a local folder for reading."""
        with self._guard(key):
            check_key(key, self.url)
            with self._files.opened(key) as file:
                yield file

    def read_ranges(
        self,
        key: str,
        ranges: Sequence[tuple[int, int]],
    ) -> list[Part]:
        """Return several (offset, length) ranges of one object.

        A negative offset counts from the object's end. Each range is one request; the
        bytes that come are not copied, and may be memoryviews. What lies behind the
        object's end is left out.
        """
        if self.local is not None:
            with self.opened(key) as file:
                return [*file.ranges(ranges)]
        with self._guard(key):
            return self._there.ranges(self._path(key), ranges)

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        with self._guard(key):
            path = self._path(key)
            if self.local is not None:
                return int(self._fs.size(path))
            return self._there.size(path)

    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        with self._guard(key):
            path = self._path(key)
            if self.local is not None:
                return self._files.exists(key)
            return self._there.exists(path)

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys of all objects under a folder, sorted.

        Temporary files are not objects.
        """
        with self._guard(prefix):
            path = self._path(prefix)
            try:
                if self.local is not None:
                    keys = self._files.list(prefix)
                else:
                    skip = len(self._root)
                    keys = [path[skip:].lstrip("/") for path in self._there.find(path)]
            except FileNotFoundError:
                return []
            # An object that has the storage's own name is none in it.
            return sorted(key for key in keys if key and not is_temporary(key))

    def objects(self, prefix: str = "") -> builtins.list[ListedObject]:
        """Return all objects under a folder with size and age, sorted by key.

        Temporary files are among them, unlike in `list`.
        """
        with self._guard(prefix):
            path = self._path(prefix)
            if self.local is not None:
                return sorted(self._files.objects(prefix))
            skip = len(self._root)
            try:
                found = self._there.find(path)
            except FileNotFoundError:
                return []
            return sorted(
                listed._replace(key=listed.key[skip:].lstrip("/"))
                for listed in found.values()
            )

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders directly below, sorted."""
        with self._guard(""):
            objects = self._there if self.local is None else FsspecObjects(self._fs, {})
            try:
                paths = objects.folders(self._root)
            except FileNotFoundError:
                return ()
            names = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
            return tuple(sorted(names))

    def is_folder(self) -> bool:
        """Return whether there is a folder at the URL.

        An object store has one where anything lies under the URL.
        """
        with self._guard(""):
            if self.local is not None:
                return self.local.is_dir()
            return self._there.is_folder(self._root)

    def is_empty(self) -> bool:
        """Return whether nothing lies under the URL."""
        if self.local is None:
            with self._guard(""):
                return self._there.is_empty(self._root)
        if not self.local.exists():
            return True
        return self.local.is_dir() and not any(self.local.iterdir())

    def put(self, key: str, data: Buffers) -> None:
        """Write or replace an object as a whole."""
        with self._guard(key, writing=True):
            path = self._path(key)
            if self.local is None:
                # An object store shows an object when all of it has come.
                self._there.put(path, _joined(data))
                return
            self._files.check_folder(key)
            local_writes.replace(self.local / key, data)

    def append(
        self,
        key: str,
        data: bytes,
        *,
        sync: bool,
    ) -> None:
        """Make an object of a local folder longer.

        A process that is killed may leave a part of `data`: readers must know where a
        piece ends. sync: wait until the disk has it.
        """
        assert self.local is not None
        with (
            self._guard(key, writing=True),
            self._files.appending(self._path(key), key) as file,
        ):
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())

    def create(self, key: str, data: Buffers) -> bool:
        """Write an object only if there is none of that key.

        Returns whether there was none.
        """
        with self._guard(key, writing=True):
            path = self._path(key)
            if self.local is None:
                return self._there.create(path, _joined(data))
            self._files.check_folder(key)
            return local_writes.create(self.local / key, data)

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        with self._guard(key), contextlib.suppress(FileNotFoundError):
            path = self._path(key)
            if self.local is None:
                self._there.delete(path)
                return
            self._files.check_folder(key)
            self._fs.rm_file(path)

    def uploads(self) -> builtins.list[PendingUpload]:
        """Return the uploads in parts that were begun here and have not ended."""
        if self.local is not None:
            return []
        with self._guard(""):
            skip = len(self._root)
            return sorted(
                found._replace(key=found.key[skip:].lstrip("/"))
                for found in self._there.uploads(self._root)
            )

    def abort(self, upload: PendingUpload) -> None:
        """End an upload that has not ended: its parts are removed."""
        with self._guard(upload.key), contextlib.suppress(FileNotFoundError):
            self._there.abort(self._path(upload.key), upload.upload)

    def is_exclusive(self) -> bool:
        """Try whether `create` lets one of several writers win; leave nothing there.

        Some object stores do not know conditional creates, or ignore the condition.
        """
        if self.local is not None:
            return True
        key = f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            won = [self.create(key, b"1"), self.create(key, b"2")]
        finally:
            self.delete(key)
        return won == [True, False] and self._there.creates

    def zarr_store(self) -> Any:
        """Return a zarr-python store over the same place, for what need not be fast."""
        import zarr.storage

        import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

        if self.local is not None:
            return zarr.storage.LocalStore(self.local)
        # Other processes write to a store, so what was listed once may not be all.
        fresh = {"use_listings_cache": False} if is_s3(self.url) else {}
        return zarr.storage.FsspecStore.from_url(
            self.url, storage_options={**fresh, **self.options}
        )

    def _path(self, key: str) -> str:
        """Return the path of an object in the file system."""
        check_key(key, self.url)
        return f"{self._root}/{key}".rstrip("/") if key else self._root

    @contextlib.contextmanager
    def _guard(
        self,
        key: str,
        *,
        writing: bool = False,
    ) -> Iterator[None]:
        """Raise what the file system raises as an error of ours that names the key."""
        try:
            yield
        except TooLarge:
            raise
        except Exception as error:
            where = f"{self.url}/{key}".rstrip("/")
            # absent while the place is being opened
            remote = getattr(self, "_remote", None)
            if remote is None:
                told = typed(error, where, self.local, writing=writing)
            else:
                told = remote.told(error, where, writing=writing)
            if told is None:
                raise
            # Not `from` what a service's client says: it may repeat a signed request.
            raise told from (error if remote is None else None)


def _joined(data: Buffers) -> bytes:
    """Return an object's bytes in one piece."""
    return data if isinstance(data, bytes) else b"".join(data)
