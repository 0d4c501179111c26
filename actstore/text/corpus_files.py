"""Find and open the files of a corpus, on this machine or under any fsspec URL.

Whatever fails becomes a CorpusError that names the file.
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
from actstore.format.storage_errors import is_of_a_service

# fsspec reads these with a further package only, and of several frames in one file only
# the first. pyarrow, which is here anyway, reads them whole.
ARROW_CODECS = {".zst": "zstd", ".lz4": "lz4"}
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", *ARROW_CODECS)
ARCHIVES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")
_SKIP_BYTES = 1 << 20  # read at a time to get to an offset without seeking


class CorpusFiles(NamedTuple):
    """The files of one corpus.

    Attributes:
        fs: The fsspec file system that they are in.
        paths: The paths of the files, sorted.
        root: The folder that they were looked for in.
        given: Whether the user named one file, a folder or a pattern.
    """

    fs: Any
    paths: tuple[str, ...]
    root: str = ""
    given: Literal["file", "folder", "pattern"] = "folder"

    def only(self, paths: tuple[str, ...]) -> CorpusFiles:
        """Return the same corpus with some of its files."""
        return self._replace(paths=paths)

    def relative(self, path: str) -> str:
        """Return a path of one of the files as seen from the root."""
        if self.root and path.startswith(self.root):
            return path[len(self.root) :].lstrip("/")
        return path

    def digest(self) -> str:
        """Return a digest of the files' names and sizes.

        That is enough to notice another corpus under the same name, and needs no
        reading.
        """
        state = blake3.blake3()
        for path in self.paths:
            name = PurePosixPath(path).name
            state.update(f"{name}\0{self.fs.size(path)}\0".encode())
        return str(state.hexdigest())

    def size(self, paths: tuple[str, ...] | None = None) -> int | None:
        """Return the bytes of all files, or of those in `paths`.

        None where one of them is compressed, or its size is not known.
        """
        if paths is None:
            paths = self.paths
        if any(path.lower().endswith(COMPRESSED) for path in paths):
            return None
        sizes = [self.fs.size(path) for path in paths]
        if None in sizes:
            return None
        return int(sum(sizes))

    @contextlib.contextmanager
    def open(self, index: int, offset: int = 0) -> Iterator[IO[bytes]]:
        """Open one file for reading, decompressed as its suffix says.

        Args:
            index: The index of the file among `paths`.
            offset: Where to begin, in bytes after decompression.

        Raises:
            CorpusError: It cannot be read.
        """
        path = self.paths[index]
        codec = ARROW_CODECS.get(PurePosixPath(path.lower()).suffix)
        by_fsspec = None if codec else "infer"
        with (
            read_errors_named(path),
            self.fs.open(path, "rb", compression=by_fsspec) as raw,
        ):
            file = _decompressed(raw, codec) if codec else raw
            _go_to(file, offset)
            yield file

    def head(self, path: str, n: int) -> bytes:
        """Return the first `n` bytes of a file, without decompressing them."""
        with read_errors_named(path), self.fs.open(path, "rb") as file:
            return bytes(file.read(n))


def _decompressed(raw: IO[bytes], codec: str) -> IO[bytes]:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    return cast("IO[bytes]", io.BufferedReader(stream))


def _go_to(file: IO[bytes], offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    # A decompressor can only read on: what comes before the offset is thrown away.
    while offset > 0:
        passed = len(file.read(min(offset, _SKIP_BYTES)))
        if passed == 0:
            return
        offset -= passed


@contextlib.contextmanager
def read_errors_named(path: str) -> Iterator[None]:
    """Turn failures of reading or decompressing into a CorpusError that names `path`.

    Other errors, which would be faults of ours, pass through.
    """
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


def find_files(url: str) -> CorpusFiles:
    """Return the files that a path, a folder or a pattern means.

    A folder means all files below it, but for hidden ones. What lies there under
    exactly that name comes before a pattern: a folder named `a[1]` is that folder.

    Raises:
        CorpusError: There is no file, or one that is not a regular file.
    """
    try:
        with read_errors_named(url):
            files = _look_up(url)
    except (ValueError, ImportError) as error:
        raise CorpusError(f"corpus {url}: {error}") from error
    special_file = _first_special_file(files)
    if special_file:
        raise CorpusError(
            f"{special_file}: not a regular file but a pipe, a socket or a device;"
            " remove it from the corpus"
        )
    if not files.paths:
        raise CorpusError(
            f"corpus {url}: there is no such file or folder, or no file in it"
        )
    return files


def _look_up(url: str) -> CorpusFiles:
    fs, path = file_system(url)
    if fs.isdir(path):
        below = [p for p in fs.find(path) if not _is_hidden(p[len(path) :])]
        files = CorpusFiles(fs, tuple(sorted(below)), path.rstrip("/"))
    elif fs.exists(path):
        folder = path.rpartition("/")[0]
        files = CorpusFiles(fs, (path,), folder, "file")
    elif fsspec.core.has_magic(path):
        root, pattern = _split_pattern(fs, path)
        matching = [p for p in fs.glob(pattern) if fs.isfile(p)]
        files = CorpusFiles(fs, tuple(sorted(matching)), root, "pattern")
    else:
        files = CorpusFiles(fs, ())
    if not files.paths:
        _check_permission(fs, path)
    return files


def _first_special_file(files: CorpusFiles) -> str | None:
    """Return the first path that is a pipe, a socket or a device on this machine.

    To open one might never return.
    """
    if not isinstance(files.fs, LocalFileSystem):
        return None
    for name in files.paths:
        path = Path(name)
        if path.exists() and not path.is_file() and not path.is_dir():
            return name
    return None


def _split_pattern(fs: Any, path: str) -> tuple[str, str]:
    """Return the folder that a pattern looks in, and the pattern with it escaped.

    A step that looks like a pattern and exists under exactly that name is a folder. If
    `/data/a[1]` exists, `/data/a[1]/*.txt` is `*.txt` in `/data/a[1]`; if not, it is
    `a[1]/*.txt` in `/data`, which finds `/data/a1/x.txt`.
    """
    steps = path.split("/")
    first = 0
    while not fsspec.core.has_magic(steps[first]):
        first += 1
    while first < len(steps) - 1 and fs.isdir("/".join(steps[: first + 1])):
        first += 1
    root = "/".join(steps[:first])
    pattern = "/".join([glob.escape(root), *steps[first:]])
    return root, pattern


def _check_permission(fs: Any, path: str) -> None:
    """Raise PermissionError where a folder seems empty and may not be looked into."""
    if isinstance(fs, LocalFileSystem) and not fsspec.core.has_magic(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            next(Path(path).iterdir(), None)


def data_suffix(path: str) -> str:
    """Return the suffix before that of a compression, in lower case.

    `a.jsonl.gz` has `.jsonl`, as has `a.jsonl`; `a` has "".
    """
    suffixes = PurePosixPath(path.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


def _is_hidden(relative: str) -> bool:
    return any(step.startswith(".") for step in relative.split("/"))
