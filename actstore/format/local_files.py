"""Opens files of a local folder that may come from someone else.

Only regular files are opened, and none outside of the folder.

A FIFO, a device or a folder in place of a file is refused as it is opened, so that
nothing waits or is endless. A link is followed as far as it stays in the folder, or in
the `blobs` beside the `snapshots` of the Hugging Face cache.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from actstore.errors import CorruptError, StorageError

FOLLOW_LINKS = "ACTSTORE_FOLLOW_LINKS"
KEPT_FOLDERS = 1 << 14  # folders that are remembered to lie inside the store
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
# Without O_NONBLOCK, opening a FIFO would wait for someone who writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _CLOEXEC
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# Parts of a path that are empty, `.` or `..`, and control characters; on Windows also
# what means a drive.
_OUTSIDE = re.compile(
    r"(^|/)(\.{0,2})(/|$)|[\x00-\x1f\x7f]"
    if os.sep == "/"
    else r"(^|/)(\.{0,2})(/|$)|[\x00-\x1f\\:]"
)


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


class PendingUpload(NamedTuple):
    """An object that is being sent to an object store in parts, or was left so.

    The place keeps the parts, and no listing of objects shows them.

    Attributes:
        key: The object's key, relative to the storage.
        upload: The place's own name for the upload.
        bytes: Bytes of the parts that are there.
        modified: When the last of them came, in seconds since 1970.
    """

    key: str
    upload: str
    bytes: int
    modified: float


class OpenFile(NamedTuple):
    """A file that is open for reading.

    Attributes:
        fd: Its descriptor.
        size: Its bytes when it was opened.
    """

    fd: int
    size: int

    def read(self) -> bytes:
        """Return all of it."""
        parts = list(self.parts(1 << 30))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def parts(self, size: int = 4 << 20) -> Iterator[bytes]:
        """Yield all of it, in pieces of `size` bytes.

        What is added to the file meanwhile is left out.
        """
        left = self.size
        while left > 0:
            part = os.read(self.fd, min(left, size))
            if not part:
                return
            yield part
            left -= len(part)

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return several (offset, length) ranges.

        A negative offset counts from the end; there is nothing after it.
        """
        parts = []
        for offset, length in ranges:
            start = offset if offset >= 0 else max(0, self.size + offset)
            # pread takes memory for all that it is asked for
            n_bytes = min(length, max(0, self.size - start))
            parts.append(os.pread(self.fd, n_bytes, start) if n_bytes else b"")
        return parts


class LocalFiles:
    """The files of one folder, which need not be there yet.

    Safe to use from several threads.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._roots: tuple[str, ...] | None = None
        self._inside: set[str] = set()

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[OpenFile]:
        """Open a file for reading.

        Raises:
            OSError: It cannot be opened, or is a folder.
            CorruptError: It is a pipe or a device, or lies outside.
        """
        path = f"{self._root}/{key}"
        self.check_folder(key)
        try:
            fd = os.open(path, _FLAGS | _NO_FOLLOW)
        except OSError as error:
            # what opening a link says, where links are not followed
            if error.errno not in {errno.ELOOP, errno.EMLINK}:
                raise
            fd = os.open(self._target(path), _FLAGS)
        try:
            info = os.fstat(fd)
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(info.st_mode):
                raise CorruptError(
                    f"{path}: it is no regular file (a pipe or a device); it is not"
                    " read"
                )
            yield OpenFile(fd, info.st_size)
        finally:
            os.close(fd)

    def exists(self, key: str) -> bool:
        """Return whether there is a file by that name.

        A pipe or a link to nowhere counts: nobody need wait for the file, and who opens
        it is told what is wrong.
        """
        path = f"{self._root}/{key}"
        return os.path.lexists(path) and not os.path.isdir(path)  # noqa: PTH112 (a string is at hand)

    def check_folder(self, key: str) -> None:
        """Raise CorruptError where the folder of a key is a link that leads out.

        Each folder is looked at once.
        """
        folder = f"{self._root}/{key}".rpartition("/")[0]
        if folder in self._inside:
            return
        self._target(folder)
        if os.path.isdir(folder):  # noqa: PTH112 (one that is not there yet can become anything)
            if len(self._inside) >= KEPT_FOLDERS:
                self._inside.clear()
            self._inside.add(folder)

    @contextlib.contextmanager
    def appending(self, path: str, key: str) -> Iterator[BinaryIO]:
        """Open a file for appending; a link is not followed.

        The file is made where there is none.
        """
        self.check_folder(key)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _CLOEXEC
        fd = os.open(path, flags, 0o666)
        with os.fdopen(fd, "ab") as file:
            yield file

    def list(self, prefix: str) -> list[str]:
        """Return the keys of all files under a folder.

        Links to folders are not gone into: they may lead in a circle.
        """
        keys = []
        skip = len(self._root) + 1
        if prefix:
            self.check_folder(f"{prefix}/.")
        top = f"{self._root}/{prefix}".rstrip("/") or "/"
        for folder, _, names in os.walk(top):
            keys += [f"{folder.rstrip('/')}/{name}"[skip:] for name in names]
        return keys

    def objects(self, prefix: str) -> builtins.list[ListedObject]:
        """Return all files under a folder; of a link, the link's own size and age."""
        found = []
        for key in self.list(prefix):
            # one that is deleted meanwhile was not there
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(f"{self._root}/{key}")
                found.append(ListedObject(key, status.st_size, status.st_mtime))
        return found

    def _target(self, path: str) -> str:
        """Return a path without links.

        Raises:
            CorruptError: It lies outside.
        """
        real = os.path.realpath(path)
        for root in self._allowed():
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return real
        raise CorruptError(
            f"{path}: it is a link to {real}, outside of the folder, and is not"
            f" followed; if you trust its maker, set {FOLLOW_LINKS}=1, or copy what"
            " it leads to (`cp -rL`)"
        )

    def _allowed(self) -> tuple[str, ...]:
        """Return the folders in which files may lie, without links."""
        if os.environ.get(FOLLOW_LINKS):
            return ("/",)
        if self._roots is None:
            # Files of .../models--x/snapshots/<commit> are links into
            # .../models--x/blobs.
            root = os.path.realpath(self._root or "/")
            parts = root.split("/")
            blobs = [
                "/".join([*parts[:i], "blobs"])
                for i, part in enumerate(parts)
                if part == "snapshots"
            ]
            self._roots = (root, *blobs)
        return self._roots


def check_key(key: str, url: str) -> None:
    """Raise StorageError for a key that does not name an object below the URL."""
    if key and _OUTSIDE.search(key):
        raise StorageError(
            f"{url}: {key!r} cannot be the key of an object; it would lead out of the"
            " folder"
        )
