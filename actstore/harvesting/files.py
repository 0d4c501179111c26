"""Finding and opening corpus files under any fsspec URL; every failure becomes a CorpusError that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import blake3
import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from actstore.errors import CorpusError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


class Files(NamedTuple):
    """Files of one corpus, sorted by path."""

    fs: Any
    paths: tuple[str, ...]

    def digest(self) -> str:
        """Of the files' names and sizes: enough to notice another corpus under the same name, without reading it."""
        state = blake3.blake3()
        for path in self.paths:
            state.update(f"{PurePosixPath(path).name}\0{self.fs.size(path)}\0".encode())
        return str(state.hexdigest())

    def size(self, paths: tuple[str, ...] | None = None) -> int | None:
        """Bytes of all files, or of some; None where one is compressed, or its size is not known."""
        paths = self.paths if paths is None else paths
        if any(path.lower().endswith(COMPRESSED) for path in paths):
            return None
        sizes = [self.fs.size(path) for path in paths]
        return None if None in sizes else int(sum(sizes))

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[IO[bytes]]:
        """One file for reading bytes, decompressed by its suffix."""
        path = self.paths[index]
        with reading(path), self.fs.open(path, "rb", compression="infer") as file:
            yield file


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Failures of the medium or the decompression as CorpusError."""
    try:
        yield
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise CorpusError(f"cannot read {path}: {reason}; remove the file from the corpus or repair it") from error


def find(url: str) -> Files:
    """The files a path, a folder (all below it, hidden ones left out) or a glob means. Raises CorpusError."""
    try:
        fs, path = url_to_fs(url)
        if fsspec.core.has_magic(path):
            found = [p for p in fs.glob(path) if fs.isfile(p)]
        elif fs.isdir(path):
            found = [p for p in fs.find(path) if not _hidden(p[len(path) :])]
        else:
            found = [path] if fs.exists(path) else []
        if not found:
            _refusing(fs, path)
    except (OSError, ValueError, ImportError) as error:
        raise CorpusError(f"corpus {url}: {error}") from error
    if not found:
        raise CorpusError(f"corpus {url}: there is no such file or folder, or no file in it")
    return Files(fs, tuple(sorted(found)))


def _refusing(fs: Any, path: str) -> None:
    """Raises PermissionError where a local path or folder seems empty because it may not be looked into."""
    if isinstance(fs, LocalFileSystem) and not fsspec.core.has_magic(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            next(Path(path).iterdir(), None)


def exists(url: str) -> bool:
    """Whether a path, URL or glob leads to something (without raising)."""
    try:
        find(url)
    except CorpusError:
        return False
    return True


def suffix(path: str) -> str:
    """The lower-case suffix before any compression suffix: `a.jsonl.gz` -> `.jsonl`."""
    suffixes = PurePosixPath(path.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
