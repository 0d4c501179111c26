"""The place of a store's bytes, and the two ways to commit an object there.

A place is any fsspec URL, with its credentials.

`put` replaces an object as a whole; `create` makes it only where none is, atomically
(S3: `If-None-Match`; locally: a temporary file, fsync and `os.link`, since fsspec's
local `mode="create"` checks first and opens later). A reader never sees half an object.
Nothing else in the project knows what kind of place a store lies in.

What lies there may be someone else's: keys cannot lead out of the place, local files
are opened as in `local_files.py`, and `limit` bounds what is read.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3
from fsspec.implementations.local import LocalFileSystem

from actstore.errors import (
    CorruptError,
    FullError,
    ObjectError,
    StorageError,
    StoreError,
)
from actstore.format.file_systems import file_system, windows_path
from actstore.format.local_files import LocalFiles, OpenFile, check_key

Buffers = bytes | Sequence[bytes | memoryview]
"""An object's bytes: in one piece, or in several that lie one after the other."""

TEMPORARY = ".tmp-"

_ADVICE = {
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may do that there",
    errno.EROFS: "choose a place that can be written",
    errno.EFBIG: "the file system or a limit forbids files of that size",
}


class ListedObject(NamedTuple):
    """An object as a listing tells it.

    Attributes:
        key: Its key, relative to the storage.
        bytes: Its size.
        modified: When it was written, in seconds since 1970; None: the place does not
            tell.
    """

    key: str
    bytes: int
    modified: float | None


class Storage:
    """The objects under one URL.

    Keys are relative, with `/`. Safe to use from several threads.

    All methods raise a StorageError for a place that cannot be reached, and ObjectError
    for an object that is not there.

    Attributes:
        url: As it was given, without slashes at its end.
        options: Options of the file system, such as credentials.
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
        why = windows_path(self.url)
        if why is not None:
            raise StorageError(f"{self.url}: {why}")
        with self._guard(""):
            self._fs, root = file_system(self.url, **self._filesystem_options())
        self._root = root.rstrip("/")
        if isinstance(self._fs, LocalFileSystem):
            if self.options:
                raise StorageError(
                    f"{self.url}: a local folder takes no options, got"
                    f" {', '.join(self.options)}; leave them out"
                )
            self.local = Path(self._root or "/")
        self._files = LocalFiles(self._root)

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

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
        with self._guard(key):
            data: bytes = self._cat(self._path(key), limit)
        if limit is not None and len(data) > limit:
            raise CorruptError(
                f"{self.url}/{key}: more than {limit} bytes, wanted at most those"
            )
        return data

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
    ) -> list[bytes]:
        """Return several (offset, length) ranges of one object.

        A negative offset counts from the object's end.
        """
        if self.local is not None:
            with self.opened(key) as file:
                return file.ranges(ranges)
        with self._guard(key):
            paths = [self._path(key)] * len(ranges)
            starts = [offset for offset, _ in ranges]
            # The last 100 bytes are from -100 to None: an end of 0 would mean nothing.
            ends = [
                None if offset < 0 and offset + n == 0 else offset + n
                for offset, n in ranges
            ]
            parts: list[bytes] = self._fs.cat_ranges(
                paths, starts, ends, on_error="raise"
            )
            return parts

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        with self._guard(key):
            return int(self._fs.size(self._path(key)))

    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        with self._guard(key):
            path = self._path(key)
            if self.local is not None:
                return self._files.exists(key)
            return bool(self._fs.isfile(path))

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
                    keys = [path[skip:].lstrip("/") for path in self._fs.find(path)]
            except FileNotFoundError:
                return []
            return sorted(key for key in keys if not _is_temporary(key))

    def objects(self, prefix: str = "") -> builtins.list[ListedObject]:
        """Return all objects under a folder with size and age, sorted by key.

        Temporary files are among them, unlike in `list`.
        """
        with self._guard(prefix):
            path = self._path(prefix)
            skip = len(self._root)
            try:
                found = self._fs.find(path, detail=True)
            except FileNotFoundError:
                return []
            objects = []
            for path_there, info in found.items():
                key = path_there[skip:].lstrip("/")
                size = int(info.get("size") or 0)
                objects.append(ListedObject(key, size, _modified(info)))
            return sorted(objects)

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders directly below, sorted."""
        with self._guard(""):
            try:
                entries = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return ()
            folders = [entry for entry in entries if entry["type"] == "directory"]
            paths = [folder["name"].rstrip("/") for folder in folders]
            return tuple(sorted(path.rsplit("/", 1)[-1] for path in paths))

    def is_folder(self) -> bool:
        """Return whether there is a folder at the URL.

        An object store has one where anything lies under the URL.
        """
        with self._guard(""):
            if self.local is not None:
                return self.local.is_dir()
            return bool(self._fs.isdir(self._root))

    def is_empty(self) -> bool:
        """Return whether nothing lies under the URL."""
        if self.local is None:
            return not self.list()
        if not self.local.exists():
            return True
        return self.local.is_dir() and not any(self.local.iterdir())

    def put(self, key: str, data: Buffers) -> None:
        """Write or replace an object as a whole."""
        with self._guard(key, writing=True):
            path = self._path(key)
            if self.local is None:
                # An object store shows an object when all of it has come.
                self._fs.pipe_file(path, _joined(data))
                return
            self._files.check_folder(key)
            with _temporary(self.local / key, data) as temporary:
                temporary.replace(self.local / key)

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
                return self._create_remote(path, _joined(data))
            self._files.check_folder(key)
            with _temporary(self.local / key, data) as temporary:
                try:
                    # Unlike a rename, it fails where there is a file by that name.
                    os.link(temporary, self.local / key)
                except FileExistsError:
                    return False
            _sync_folder((self.local / key).parent)
            return True

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        with self._guard(key), contextlib.suppress(FileNotFoundError):
            path = self._path(key)
            if self.local is not None:
                self._files.check_folder(key)
            self._fs.rm_file(path)

    def zarr_store(self) -> Any:
        """Return a zarr-python store over the same place, for what need not be fast."""
        import zarr.storage

        import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

        if self.local is not None:
            return zarr.storage.LocalStore(self.local)
        return zarr.storage.FsspecStore.from_url(
            self.url, storage_options=self._filesystem_options()
        )

    def _create_remote(self, path: str, data: bytes) -> bool:
        """Create an object of an object store; return whether there was none."""
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _is_precondition(error):
                return False
            raise
        return True

    def _cat(self, path: str, limit: int | None) -> bytes:
        """Return an object's bytes, or the first `limit` + 1 of them."""
        if limit is None:
            whole: bytes = self._fs.cat_file(path)
            return whole
        try:
            data: bytes = self._fs.cat_file(path, start=0, end=limit + 1)
        except FileNotFoundError:
            raise
        except Exception:
            # a range of nothing is an error in some places
            if self._fs.size(path) == 0:
                return b""
            raise
        return data

    def _path(self, key: str) -> str:
        """Return the path of an object in the file system."""
        check_key(key, self.url)
        return f"{self._root}/{key}".rstrip("/") if key else self._root

    def _filesystem_options(self) -> dict[str, Any]:
        """Return the options with what must hold for stores."""
        # Other processes write to a store, so what was listed once may not be all.
        if self.url.startswith(("s3://", "s3a://")):
            return {"use_listings_cache": False, **self.options}
        return self.options

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
        except Exception as error:
            where = f"{self.url}/{key}".rstrip("/")
            typed = _typed(error, where, self.local, writing=writing)
            if typed is None:
                raise
            raise typed from error


def _typed(
    error: Exception, where: str, local: Path | None, *, writing: bool
) -> StoreError | None:
    """Return the error that the user is told.

    None: it is not the fault of the place or the URL.
    """
    if isinstance(error, OSError):
        return _of_system(error, where, local, writing=writing)
    # what fsspec's read-only places (http, zip) raise on a write
    if isinstance(error, NotImplementedError):
        return StorageError(
            f"{where}: places of this kind can be read only; choose another one"
        )
    # fsspec says "Protocol not known" of a URL, and ImportError where a package lacks
    unknown_protocol = isinstance(error, ValueError) and "rotocol" in str(error)
    if unknown_protocol or isinstance(error, ImportError):
        return StorageError(f"{where}: not a URL that can be opened: {error}")
    if is_of_a_service(error):
        return StorageError(f"{where}: {error}; check the endpoint and the credentials")
    return None


def is_of_a_service(error: Exception) -> bool:
    """Return whether an error comes from an object store or the way to it.

    Other errors come from the program.
    """
    services = ("botocore", "aiobotocore", "aiohttp", "fsspec", "httpx", "httpcore")
    return type(error).__module__.startswith(services)


def _of_system(
    error: OSError, where: str, local: Path | None, *, writing: bool
) -> StoreError:
    """Return the error that the user is told of an error of the operating system."""
    if isinstance(error, IsADirectoryError):
        return ObjectError(f"{where}: it is a folder, wanted a file; check the path")
    if writing and isinstance(error, (FileExistsError, NotADirectoryError)):
        return StorageError(
            f"{where}: {_in_the_way(error)} is a file, wanted a folder; check the path"
        )
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ObjectError(f"{where}: there is no such object")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return FullError(
            f"{where}: {error.strerror}; {_full(local)}: free some space there"
        )
    otherwise = "check the path, the network and the credentials"
    advice = _ADVICE.get(error.errno or 0, otherwise)
    return StorageError(f"{where}: {error.strerror or error}; {advice}")


def _in_the_way(error: OSError) -> str:
    """Return the first part of a path that is there and not a folder."""
    if error.filename is not None:
        path = Path(os.fsdecode(error.filename))
        for part in (*reversed(path.parents), path):
            if part.exists() and not part.is_dir():
                return str(part)
    return "what is there"


def _full(path: Path | None) -> str:
    """Return which disk is full, or used up to a quota, and how large it is."""
    if path is None:
        return "the place is full"
    while not path.exists() and path != path.parent:
        path = path.parent
    # Upwards as long as it is the same disk: its mount point.
    mount = path.resolve()
    while mount != mount.parent and mount.parent.stat().st_dev == mount.stat().st_dev:
        mount = mount.parent
    usage = shutil.disk_usage(mount)
    return (
        f"the disk is full (that at {mount}, {usage.free / 1e6:,.1f} of"
        f" {usage.total / 1e6:,.1f} MB left)"
    )


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


def _modified(info: dict[str, Any]) -> float | None:
    """Return when an object was written, in seconds since 1970, by what fsspec says."""
    for name in ("LastModified", "mtime", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _is_temporary(key: str) -> bool:
    """Return whether a key is that of a temporary file."""
    return key.rsplit("/", 1)[-1].startswith(TEMPORARY)


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries: a new name then outlives a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _joined(data: Buffers) -> bytes:
    """Return an object's bytes in one piece."""
    return data if isinstance(data, bytes) else b"".join(data)


def _is_precondition(error: BaseException) -> bool:
    """Return whether an error is a lost conditional PUT.

    s3fs reports it as OSError(EINVAL) around the service's answer.
    """
    lost = {"PreconditionFailed", "ConditionalRequestConflict"}
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        answer = response if isinstance(response, dict) else {}
        if answer.get("Error", {}).get("Code") in lost:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
