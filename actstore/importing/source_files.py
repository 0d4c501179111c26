"""Finds files of activations at the paths that a user names.

It settles which files there are, their format and order, and what identifies them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

from blake3 import blake3

from actstore.errors import SourceError, SpecError
from actstore.format.file_systems import GIT_LFS, windows_path
from actstore.importing import (
    hdf5_files,
    npy_files,
    table_files,
    tensor_files,
    zarr_files,
)
from actstore.importing.source_arrays import SourceArray, SourceFile, reading
from schemas.source import ImportedFile, ImportFormat

OPEN: dict[ImportFormat, Callable[[Path, ExitStack], list[SourceArray]]] = {
    "npy": npy_files.open_npy,
    "pt": tensor_files.open_pt,
    "safetensors": tensor_files.open_safetensors,
    "hdf5": hdf5_files.open_hdf5,
    "parquet": table_files.open_parquet,
    "zarr": zarr_files.open_zarr,
    "saelens": table_files.open_dataset,
}
"""The function that opens a path, by format."""
SUFFIXES: dict[str, ImportFormat] = {
    ".npy": "npy",
    ".pt": "pt",
    ".pth": "pt",
    ".safetensors": "safetensors",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# Formats in which a folder is one data set.
FOLDERS: tuple[ImportFormat, ...] = ("zarr", "saelens")
_READ_BYTES = 8 << 20  # bytes of a file that are digested at a time


class FoundFile(NamedTuple):
    """A path, a file's or that of a folder that is one data set, and its format."""

    path: Path
    format: ImportFormat


def find_files(
    paths: Iterable[str | os.PathLike[str]], wanted_format: str = "auto"
) -> list[FoundFile]:
    """Find the files, and the folders that are one data set, that paths mean.

    Args:
        paths: Files, or folders of them.
        wanted_format: One of `OPEN`, or `auto` to tell it from suffixes and folders.

    Returns:
        Them in natural order: `part-2` before `part-10`.

    Raises:
        SourceError: One is missing, is given twice or has no known format.
        SpecError: There is no such format.
    """
    if wanted_format != "auto" and wanted_format not in OPEN:
        formats = ", ".join(name for name in get_args(ImportFormat) if name in OPEN)
        raise SpecError(f"format {wanted_format!r}: wanted auto or one of {formats}")
    files: list[FoundFile] = []
    for path in paths:
        files += _files_at(_existing(path), wanted_format)
    files.sort(key=lambda file: natural_order(str(file.path)))
    # Sorted, so the same path twice comes one after the other.
    for file, following in itertools.pairwise(files):
        if file.path == following.path:
            raise SourceError(f"{file.path}: it is given twice; name each file once")
    return files


def natural_order(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts digits as numbers: `part-2` comes before `part-10`.

    `part-10.npy` becomes (1, 0, "part-"), (0, 10, "10"), (1, 0, ".npy"): the first
    number of each says whether it is a number or a word, so that words and numbers are
    never compared with each other.
    """
    words = [word for word in re.split(r"(\d+)", text) if word]
    return [
        (0, int(word), word) if word.isdecimal() else (1, 0, word) for word in words
    ]


def source_file(name: str, found: FoundFile) -> SourceFile:
    """Return a file whose arrays are opened when they are needed."""
    opener = partial(_open, found)
    return SourceFile(name, str(found.path), found.format, opener)


def short_names(paths: list[Path]) -> dict[Path, str]:
    """Return paths' names relative to the folder that all of them lie in.

    A store then does not tell where on a machine its sources lay.
    """
    if not paths:
        return {}
    # Not resolved: a link keeps its own name.
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    names = [path.relative_to(common).as_posix() for path in absolute]
    return dict(zip(paths, names, strict=True))


def fingerprint(name: str, path: Path) -> ImportedFile:
    """Return the size and digest of a file, or of all files in a folder."""
    if not path.is_dir():
        size, digest = _size_and_digest(path)
        return ImportedFile(name=name, bytes=size, digest=digest)
    # Names count too: the same files under other names are another array.
    folder_digest = blake3()
    total = 0
    # Sorted, since disks list a folder's files in different orders.
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        size, digest = _size_and_digest(file)
        total += size
        inside = file.relative_to(path).as_posix()
        folder_digest.update(f"{inside}\0{digest}\0".encode())
    return ImportedFile(name=name, bytes=total, digest=folder_digest.hexdigest())


def _open(found: FoundFile, stack: ExitStack) -> list[SourceArray]:
    with reading(str(found.path), found.format):
        arrays = OPEN[found.format](found.path, stack)
    if not arrays:
        raise SourceError(f"{found.path}: it holds no array of numbers")
    return arrays


def _existing(given: str | os.PathLike[str]) -> Path:
    """Return a path that exists; where it does not, say why that may be."""
    text = os.fspath(given)
    path = Path(text)
    if path.exists():
        return path
    if "://" in text:
        raise SourceError(
            f"{text}: activations are imported from local files; copy it here first"
        )
    why = windows_path(text)
    if why is not None:
        raise SourceError(f"{text}: {why}")
    raise SourceError(f"{text}: there is no such file or folder")


def _files_at(path: Path, wanted_format: str) -> list[FoundFile]:
    """Return the path itself, or what lies in the folder that it is.

    The former where it is a file or one data set, else the files and data sets in it.
    """
    if path.is_file():
        return [FoundFile(path, _format_of_file(path, wanted_format))]
    folder_format = _format_of_folder(path, wanted_format)
    if folder_format is not None:
        return [FoundFile(path, folder_format)]
    # Hidden files are a system's, such as `.DS_Store`.
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    found: list[FoundFile] = []
    for entry in entries:
        entry_format = _format_of_folder(entry, wanted_format)
        if entry_format is not None:
            found.append(FoundFile(entry, entry_format))
    found += [
        FoundFile(entry, _format_of_file(entry, wanted_format))
        for entry in entries
        if _is_wanted_file(entry, wanted_format)
    ]
    if not found:
        raise SourceError(
            f"{path}: there is no file in it that can be imported"
            f" ({', '.join(SUFFIXES)}), and no data set"
        )
    formats = sorted({file.format for file in found})
    if len(formats) > 1:
        raise SourceError(
            f"{path}: files of several formats lie in it ({', '.join(formats)}); say"
            " which to import (--format)"
        )
    return found


def _is_wanted_file(path: Path, wanted_format: str) -> bool:
    suffix_format = SUFFIXES.get(path.suffix.lower())
    if suffix_format is None or not path.is_file():
        return False
    return wanted_format in {"auto", suffix_format}


def _format_of_folder(path: Path, wanted_format: str) -> ImportFormat | None:
    """Return the format of a folder that is one data set.

    None for a folder that only holds files, and for a file.
    """
    if not path.is_dir():
        return None
    names = {entry.name for entry in path.iterdir()}
    # The splits of a data set, each a folder: which of them is wanted, nobody said.
    if "dataset_dict.json" in names:
        raise SourceError(f"{path}: it holds several data sets; give the folder of one")
    looks_like = {
        "zarr": not names.isdisjoint(zarr_files.MARKS),
        "saelens": names.issuperset(table_files.MARKS),
    }
    for folder_format in FOLDERS:
        if wanted_format in {"auto", folder_format} and looks_like[folder_format]:
            return folder_format
    return None


def _format_of_file(path: Path, wanted_format: str) -> ImportFormat:
    """Return a file's format, which its suffix tells, or the user."""
    # A clone without git-LFS has small text files in place of the large ones, which
    # every format's own reader would call damaged.
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise SourceError(
                f"{path}: this is a git-LFS pointer, not the file itself; run `git lfs"
                " pull` to get that"
            )
    if wanted_format == "auto":
        suffix_format = SUFFIXES.get(path.suffix.lower())
        if suffix_format is None:
            raise SourceError(
                f"{path}: its suffix tells no format ({', '.join(SUFFIXES)}); say which"
                " it is (--format)"
            )
        return suffix_format
    for file_format in OPEN:
        if file_format == wanted_format and file_format not in FOLDERS:
            return file_format
    raise SourceError(
        f"{path}: {wanted_format} is a folder, this is a file; give the folder"
    )


def _size_and_digest(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes, and the blake3 digest of its bytes."""
    digest = blake3()
    size = 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()
