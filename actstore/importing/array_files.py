"""From paths to parts: which files there are, of which format, in which order, and what
identifies them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import get_args

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
from actstore.importing.arrays import Array, Part, reading
from schemas.source import ImportedFile, ImportFormat

Open = Callable[[Path, ExitStack], list[Array]]
OPEN: dict[ImportFormat, Open] = {
    "npy": npy_files.open_npy,
    "pt": tensor_files.open_pt,
    "safetensors": tensor_files.open_safetensors,
    "hdf5": hdf5_files.open_hdf5,
    "parquet": table_files.open_parquet,
    "zarr": zarr_files.open_zarr,
    "saelens": table_files.open_dataset,
}
SUFFIXES: dict[str, ImportFormat] = {
    ".npy": "npy",
    **dict.fromkeys((".pt", ".pth"), "pt"),
    ".safetensors": "safetensors",
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), "hdf5"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}  # fmt: skip
FOLDERS: tuple[ImportFormat, ...] = ("zarr", "saelens")
_BLOCK = 8 << 20


def find_parts(
    paths: Iterable[str | os.PathLike[str]], kind: str = "auto"
) -> list[tuple[Path, ImportFormat]]:
    """The files (or folders that are one data set) that paths mean, in natural order:
    `part-2` before `part-10`.

    Raises SourceError where one is missing, given twice or of no known format;
    SpecError for an unknown format.
    """
    if kind != "auto" and kind not in OPEN:
        formats = ", ".join(one for one in get_args(ImportFormat) if one in OPEN)
        raise SpecError(f"format {kind!r}: wanted auto or one of {formats}")
    found = [part for path in paths for part in _parts(_existing(path), kind)]
    found.sort(key=lambda part: natural(str(part[0])))
    for (path, _), (following, _) in itertools.pairwise(found):
        if path == following:
            raise SourceError(f"{path}: it is given twice; name each file once")
    return found


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key that counts: `part-2` comes before `part-10`."""
    return [
        (0, int(word), word) if word.isdecimal() else (1, 0, word)
        for word in re.split(r"(\d+)", text)
        if word
    ]


def open_part(name: str, path: Path, kind: ImportFormat) -> Part:
    """A part whose arrays are read when they are needed."""
    return Part(name, str(path), kind, partial(_open, path, kind))


def short_names(paths: list[Path]) -> dict[Path, str]:
    """Names relative to the folder that all of them lie in: no store tells where on a
    machine its sources lay.
    """
    resolved = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (a link keeps its own name)
    above = (
        Path(os.path.commonpath([path.parent for path in resolved]))
        if resolved
        else Path()
    )
    return {
        path: one.relative_to(above).as_posix()
        for path, one in zip(paths, resolved, strict=True)
    }


def fingerprint(name: str, path: Path) -> ImportedFile:
    """Size and digest of a file, or of a folder's files."""
    if not path.is_dir():
        size, digest = _digest(path)
        return ImportedFile(name=name, bytes=size, digest=digest)
    state, total = blake3(), 0
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        size, digest = _digest(file)
        total += size
        state.update(f"{file.relative_to(path).as_posix()}\0{digest}\0".encode())
    return ImportedFile(name=name, bytes=total, digest=state.hexdigest())


def _open(path: Path, kind: ImportFormat, stack: ExitStack) -> list[Array]:
    with reading(str(path), kind):
        found = OPEN[kind](path, stack)
    if not found:
        raise SourceError(f"{path}: it holds no array of numbers")
    return found


def _existing(given: str | os.PathLike[str]) -> Path:
    text = os.fspath(given)
    path = Path(text)
    if not path.exists():
        if "://" in text:
            raise SourceError(
                f"{text}: activations are imported from local files; copy it here first"
            )
        if (why := windows_path(text)) is not None:
            raise SourceError(f"{text}: {why}")
        raise SourceError(f"{text}: there is no such file or folder")
    return path


def _parts(path: Path, kind: str) -> list[tuple[Path, ImportFormat]]:
    """The path itself where it is a file or one data set, else the files in the folder."""
    if path.is_file():
        return [(path, _format(path, kind))]
    if (whole := _data_set(path, kind)) is not None:
        return [(path, whole)]
    inside = [one for one in path.iterdir() if not one.name.startswith(".")]
    found = [
        (one, whole)
        for one in inside
        if one.is_dir() and (whole := _data_set(one, kind)) is not None
    ]
    found += [
        (one, _format(one, kind))
        for one in inside
        if one.is_file() and _wanted(one, kind)
    ]
    if not found:
        raise SourceError(
            f"{path}: there is no file in it that can be imported"
            f" ({', '.join(SUFFIXES)}), and no data set"
        )
    if len(kinds := sorted({one for _, one in found})) > 1:
        raise SourceError(
            f"{path}: files of several formats lie in it ({', '.join(kinds)}); say"
            " which to import (--format)"
        )
    return found


def _wanted(path: Path, kind: str) -> bool:
    found = SUFFIXES.get(path.suffix.lower())
    return found is not None and kind in {"auto", found}


def _data_set(path: Path, kind: str) -> ImportFormat | None:
    """What a folder is as a whole; None where it only holds files."""
    names = {one.name for one in path.iterdir()}
    if "dataset_dict.json" in names:
        raise SourceError(f"{path}: it holds several data sets; give the folder of one")
    marks = {
        "zarr": names & set(zarr_files.MARKS),
        "saelens": set(table_files.MARKS) <= names,
    }
    for whole in FOLDERS:
        if kind in {"auto", whole} and marks[whole]:
            return whole
    return None


def _format(path: Path, kind: str) -> ImportFormat:
    """Of a file: by its suffix, or as given."""
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise SourceError(
                f"{path}: this is a git-LFS pointer, not the file itself; run `git lfs"
                " pull` to get that"
            )
    if kind == "auto":
        if (found := SUFFIXES.get(path.suffix.lower())) is None:
            raise SourceError(
                f"{path}: its suffix tells no format ({', '.join(SUFFIXES)}); say which"
                " it is (--format)"
            )
        return found
    for one in OPEN:
        if one == kind and one not in FOLDERS:
            return one
    raise SourceError(f"{path}: {kind} is a folder, this is a file; give the folder")


def _digest(path: Path) -> tuple[int, str]:
    state, size = blake3(), 0
    with path.open("rb") as file:
        while data := file.read(_BLOCK):
            state.update(data)
            size += len(data)
    return size, state.hexdigest()
