"""One place for bytes: any fsspec URL, its credentials, and the two ways to commit.

`put` replaces an object as a whole; `create` makes it only where none is, atomically
(S3: `If-None-Match`; locally: a temporary file, fsync and `os.link`, since fsspec's
local `mode="create"` checks first and opens later). A reader never sees half an object.
Nothing else in the project knows what kind of place a store lies in. What lies there
may be someone else's: keys cannot lead out of the place, local files are opened as in
`local_files.py`, `limit` bounds what is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
TEMPORARY = ".tmp-"

_ADVICE = {
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may do that there",
    errno.EROFS: "choose a place that can be written",
    errno.EFBIG: "the file system or a limit forbids files of that size",
}


class Storage:
    """The objects under one URL. Keys are relative, with `/`. Safe to use from several
    threads.
    """

    def __init__(
        self, url: str | os.PathLike[str], options: dict[str, Any] | None = None
    ) -> None:
        text = str(url)
        bare = text.rstrip("/")
        # `memory://` and `file:///` are roots: their slashes belong to the protocol.
        self.url = text if bare.endswith(":") or not bare else bare
        self.options = dict(options or {})
        self.local: Path | None = None
        if (why := windows_path(self.url)) is not None:
            raise StorageError(f"{self.url}: {why}")
        with self._guard(""):
            self._fs, root = file_system(self.url, **self._filesystem_options())
        self._root = root.rstrip("/")
        if isinstance(self._fs, LocalFileSystem):
            self.local = Path(self._root or "/")
        self._files = LocalFiles(self._root)

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def child(self, key: str) -> Storage:
        """The storage one folder down."""
        return Storage(
            (
                f"{self.url.rstrip('/')}/{key}"
                if not self.url.endswith("://")
                else self.url + key
            ),
            self.options,
        )

    def read(self, key: str, limit: int | None = None) -> bytes:
        """The whole object. Raises ObjectError where there is none, CorruptError where
        it has more bytes than `limit`, of which no more are read then.
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
        """(bytes, blake3 digest) of an object of at most `limit` bytes; a local one is
        never in memory as a whole.
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
        """An object of a local folder as an open file."""
        with self._guard(key):
            check_key(key, self.url)
            with self._files.opened(key) as file:
                yield file

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several (offset, length) ranges of one object; a negative offset counts from
        its end.
        """
        if self.local is not None:
            with self.opened(key) as file:
                return file.ranges(ranges)
        with self._guard(key):
            path = self._path(key)
            starts = [offset for offset, _ in ranges]
            ends = [
                None if offset < 0 and offset + n == 0 else offset + n
                for offset, n in ranges
            ]
            parts: list[bytes] = self._fs.cat_ranges(
                [path] * len(ranges), starts, ends, on_error="raise"
            )
            return parts

    def size(self, key: str) -> int:
        with self._guard(key):
            return int(self._fs.size(self._path(key)))

    def exists(self, key: str) -> bool:
        with self._guard(key):
            path = self._path(key)
            return (
                self._files.exists(key)
                if self.local is not None
                else bool(self._fs.isfile(path))
            )

    def list(self, prefix: str = "") -> list[str]:
        """Keys of all objects under a folder, sorted; temporary files are not objects."""
        with self._guard(prefix):
            path = self._path(prefix)
            try:
                found = (
                    self._files.list(prefix)
                    if self.local is not None
                    else self._fs.find(path)
                )
            except FileNotFoundError:
                return []
            skip = 0 if self.local is not None else len(self._root)
            keys = (path[skip:].lstrip("/") for path in found)
            return sorted(
                key for key in keys if not key.rsplit("/", 1)[-1].startswith(TEMPORARY)
            )

    def folders(self) -> tuple[str, ...]:
        """Names of the folders directly below."""
        with self._guard(""):
            try:
                entries = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return ()
            return tuple(
                sorted(
                    e["name"].rstrip("/").rsplit("/", 1)[-1]
                    for e in entries
                    if e["type"] == "directory"
                )
            )

    def is_empty(self) -> bool:
        """Whether nothing lies under the URL."""
        if self.local is not None:
            return not self.local.exists() or (
                self.local.is_dir() and not any(self.local.iterdir())
            )
        return not self.list()

    def put(self, key: str, data: Buffers) -> None:
        """Write or replace an object as a whole."""
        with self._guard(key, writing=True):
            path = self._path(key)
            if self.local is None:
                self._fs.pipe_file(path, _joined(data))
                return
            self._files.check_folder(key)
            with _temporary(self.local / key, data) as temporary:
                temporary.replace(self.local / key)

    def append(self, key: str, data: bytes, *, sync: bool) -> None:
        """Make an object of a local folder longer. A process that is killed may leave a
        part of `data`: readers must know where a piece ends. sync: wait until the disk
        has it.
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
        """Write an object only if there is none of that key; False where there is one
        already.
        """
        with self._guard(key, writing=True):
            path = self._path(key)
            if self.local is None:
                return self._create_remote(path, _joined(data))
            self._files.check_folder(key)
            with _temporary(self.local / key, data) as temporary:
                try:
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
        """A zarr-python store over the same place, for everything cold."""
        import zarr.storage

        import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

        if self.local is not None:
            return zarr.storage.LocalStore(self.local)
        return zarr.storage.FsspecStore.from_url(
            self.url, storage_options=self._filesystem_options()
        )

    def _create_remote(self, path: str, data: bytes) -> bool:
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
        """An object's bytes, or the first `limit` + 1 of them."""
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
        check_key(key, self.url)
        return f"{self._root}/{key}".rstrip("/") if key else self._root

    def _filesystem_options(self) -> dict[str, Any]:
        if self.url.startswith(("s3://", "s3a://")):
            return {"use_listings_cache": False, **self.options}
        return self.options

    @contextlib.contextmanager
    def _guard(self, key: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = _typed(
                error, f"{self.url}/{key}".rstrip("/"), self.local, writing=writing
            )
            if told is None:
                raise
            raise told from error


def _typed(
    error: Exception, where: str, local: Path | None, *, writing: bool
) -> StoreError | None:
    """The error that the user is told; None for what is no fault of the place or the
    URL.
    """
    if isinstance(error, OSError):
        return _of_system(error, where, local, writing=writing)
    # what fsspec's read-only places (http, zip) raise on a write
    if isinstance(error, NotImplementedError):
        return StorageError(
            f"{where}: places of this kind can be read only; choose another one"
        )
    if isinstance(error, ImportError) or (
        isinstance(error, ValueError) and "rotocol" in str(error)
    ):
        return StorageError(f"{where}: not a URL that can be opened: {error}")
    if is_of_a_service(error):
        return StorageError(f"{where}: {error}; check the endpoint and the credentials")
    return None


def is_of_a_service(error: Exception) -> bool:
    """Tell whether an error comes from an object store or the way to it, and not from
    the program.
    """
    return type(error).__module__.startswith(
        ("botocore", "aiobotocore", "aiohttp", "fsspec")
    )


def _of_system(
    error: OSError, where: str, local: Path | None, *, writing: bool
) -> StoreError:
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
    advice = _ADVICE.get(
        error.errno or 0, "check the path, the network and the credentials"
    )
    return StorageError(f"{where}: {error.strerror or error}; {advice}")


def _in_the_way(error: OSError) -> str:
    """The first part of a path that is there and no folder."""
    path = Path(os.fsdecode(error.filename)) if error.filename is not None else None
    above = [] if path is None else [*reversed(path.parents), path]
    return next(
        (str(one) for one in above if one.exists() and not one.is_dir()),
        "what is there",
    )


def _full(path: Path | None) -> str:
    """Which disk is full, or used up to a quota, and how large it is."""
    if path is None:
        return "the place is full"
    while not path.exists() and path != path.parent:
        path = path.parent
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
    """A synced file beside `path`; it is gone afterwards, whatever happens."""
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
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _joined(data: Buffers) -> bytes:
    return data if isinstance(data, bytes) else b"".join(data)


def _is_precondition(error: BaseException) -> bool:
    """s3fs reports a lost conditional PUT as OSError(EINVAL) around the service's
    answer.
    """
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in {
            "PreconditionFailed",
            "ConditionalRequestConflict",
        }:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
