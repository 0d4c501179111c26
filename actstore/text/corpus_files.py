"""Finding and opening corpus files under any fsspec URL; every failure becomes a
CorpusError that names the file.
"""

from __future__ import annotations

import contextlib
import glob
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast

import blake3
import fsspec
from fsspec.implementations.local import LocalFileSystem

from actstore.errors import CorpusError
from actstore.format.file_systems import file_system
from actstore.format.storage import is_of_a_service

# which fsspec has by a further package only, and reads one frame of
BY_ARROW = {".zst": "zstd", ".lz4": "lz4"}
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", *BY_ARROW)
ARCHIVES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")
_SKIP = 1 << 20


class Files(NamedTuple):
    """Files of one corpus, sorted by path. root: the folder that they were looked for
    in; given: how that was named.
    """

    fs: Any
    paths: tuple[str, ...]
    root: str = ""
    given: Literal["file", "folder", "pattern"] = "folder"

    def only(self, paths: tuple[str, ...]) -> Files:
        """Some of them."""
        return self._replace(paths=paths)

    def relative(self, path: str) -> str:
        """A path of theirs below the root."""
        return (
            path[len(self.root) :].lstrip("/")
            if self.root and path.startswith(self.root)
            else path
        )

    def digest(self) -> str:
        """Of the files' names and sizes: enough to notice another corpus under the same
        name, without reading it.
        """
        state = blake3.blake3()
        for path in self.paths:
            state.update(f"{PurePosixPath(path).name}\0{self.fs.size(path)}\0".encode())
        return str(state.hexdigest())

    def size(self, paths: tuple[str, ...] | None = None) -> int | None:
        """Bytes of all files, or of some; None where one is compressed, or its size is
        not known.
        """
        paths = self.paths if paths is None else paths
        if any(path.lower().endswith(COMPRESSED) for path in paths):
            return None
        sizes = [self.fs.size(path) for path in paths]
        return None if None in sizes else int(sum(sizes))

    @contextlib.contextmanager
    def open(self, index: int, offset: int = 0) -> Iterator[IO[bytes]]:
        """One file for reading bytes from an offset on, decompressed by its suffix."""
        path = self.paths[index]
        codec = BY_ARROW.get(PurePosixPath(path.lower()).suffix)
        with (
            reading(path),
            self.fs.open(path, "rb", compression=None if codec else "infer") as raw,
        ):
            file = _decompressed(raw, codec) if codec else raw
            _go_to(file, offset)
            yield file

    def head(self, path: str, n: int) -> bytes:
        """The first bytes of a file, as they lie there."""
        with reading(path), self.fs.open(path, "rb") as file:
            return bytes(file.read(n))


def _decompressed(raw: IO[bytes], codec: str) -> IO[bytes]:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    return cast("IO[bytes]", io.BufferedReader(stream))


def _go_to(file: IO[bytes], offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (passed := len(file.read(min(offset, _SKIP)))):
        offset -= passed


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Failures of the medium or the decompression as CorpusError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise CorpusError(
            f"cannot read {path}: {reason}; remove the file from the corpus or"
            " repair it"
        ) from error
    except Exception as error:
        if not is_of_a_service(error):
            raise
        raise CorpusError(
            f"cannot read {path}: {error}; check the endpoint and the credentials"
        ) from error


def find(url: str) -> Files:
    """The files that a path, a folder (all below it, hidden ones left out) or a pattern
    means. Raises CorpusError.

    What lies there by exactly that name comes before a pattern.
    """
    try:
        with reading(url):
            found = _found(url)
    except (ValueError, ImportError) as error:
        raise CorpusError(f"corpus {url}: {error}") from error
    if odd := _not_regular(found):
        raise CorpusError(
            f"{odd}: not a regular file but a pipe, a socket or a device; remove it"
            " from the corpus"
        )
    if not found.paths:
        raise CorpusError(
            f"corpus {url}: there is no such file or folder, or no file in it"
        )
    return found


def _found(url: str) -> Files:
    fs, path = file_system(url)
    if fs.isdir(path):
        below = [p for p in fs.find(path) if not _hidden(p[len(path) :])]
        found = Files(fs, tuple(sorted(below)), path.rstrip("/"))
    elif fs.exists(path):
        found = Files(fs, (path,), path.rpartition("/")[0], "file")
    elif fsspec.core.has_magic(path):
        root, pattern = _literal(fs, path)
        found = Files(
            fs,
            tuple(sorted(p for p in fs.glob(pattern) if fs.isfile(p))),
            root,
            "pattern",
        )
    else:
        found = Files(fs, ())
    if not found.paths:
        _refusing(fs, path)
    return found


def _not_regular(files: Files) -> str | None:
    """The first path that is a pipe, a socket or a device here; opening one may never
    return.
    """
    if not isinstance(files.fs, LocalFileSystem):
        return None
    for path in files.paths:
        there = Path(path)
        if there.exists() and not there.is_file() and not there.is_dir():
            return path
    return None


def _literal(fs: Any, path: str) -> tuple[str, str]:
    """The folder that a pattern is of, and the pattern; folders that lie there by
    exactly their name are meant.
    """
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if fsspec.core.has_magic(part))
    while first < len(parts) - 1 and fs.isdir("/".join(parts[: first + 1])):
        first += 1
    root = "/".join(parts[:first])
    return root, "/".join([glob.escape(root), *parts[first:]])


def _refusing(fs: Any, path: str) -> None:
    """Raises PermissionError where a local path or folder seems empty because it may
    not be looked into.
    """
    if isinstance(fs, LocalFileSystem) and not fsspec.core.has_magic(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            next(Path(path).iterdir(), None)


def suffix(path: str) -> str:
    """The lower-case suffix before any compression suffix: `a.jsonl.gz` -> `.jsonl`."""
    suffixes = PurePosixPath(path.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
