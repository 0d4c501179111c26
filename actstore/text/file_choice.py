"""Which files of a folder are the corpus: what kind they are, and which are no
documents. What is left out is said.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from actstore.errors import CorpusError
from actstore.text.corpus_files import ARCHIVES, Files, suffix
from actstore.text.documents import Column
from actstore.text.splits import choose, some

JSONL = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
OF_KIND = {"jsonl": JSONL, "parquet": PARQUET}
# What lies beside data and is none; the `datasets` library passes over the same names.
ABOUT = frozenset(
    {
        "readme.md",
        "config.json",
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
    }
)
_LOOKED_AT = 100  # files ending in .json whose beginning is read
_HEAD = 1 << 16


def kind_of(files: Files) -> str:
    """What files are, by their names: dataset, parquet, jsonl or text."""
    names = {PurePosixPath(path).name for path in files.paths}
    if files.given != "file" and (
        "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names
    ):
        return "dataset"
    own = [path for path in files.paths if files.given == "file" or not _is_about(path)]
    suffixes = {suffix(path) for path in own}
    if suffixes & set(PARQUET):
        return "parquet"
    return "jsonl" if suffixes & set(JSONL) else "text"


def documents_of(
    files: Files, kind: str, split: str | None, column: Column
) -> tuple[Files, list[str]]:
    """The files to read, and sentences on those left out. Raises CorpusError."""
    said = []
    if files.given != "file":
        files, told = _without(
            files, {path for path in files.paths if _is_about(path)}, "no documents"
        )
        said += told
        files, told = _without(files, _metadata(files, column), "no documents")
        said += told
        files, told = _of_kind(files, kind)
        said += told
    files, left = choose(files, split, named=kind != "text")
    said += [left] if left else []
    for path in files.paths:
        if _is_archive(path):
            raise CorpusError(
                f"{path}: an archive of several files is no corpus; unpack it, and give"
                " the folder with its files"
            )
    return files, said


def _without(files: Files, left: set[str], why: str) -> tuple[Files, list[str]]:
    if not left:
        return files, []
    kept = tuple(path for path in files.paths if path not in left)
    names = some(sorted(files.relative(path) for path in left))
    if not kept:
        raise CorpusError(
            f"{files.root}: there is no file with documents in it, only {names}"
        )
    return files.only(kept), [
        f"{len(left):,} file{'s' * (len(left) != 1)} left out, {why}: {names}"
    ]


def _of_kind(files: Files, kind: str) -> tuple[Files, list[str]]:
    """The files of a kind in a mixed folder; all of them where none has its suffix."""
    suffixes = OF_KIND.get(kind, ())
    others = {path for path in files.paths if suffix(path) not in suffixes}
    if not suffixes or len(others) == len(files.paths):
        return files, []
    return _without(
        files, others, f"not {' or '.join(suffixes)} (the corpus is read as {kind})"
    )


def _metadata(files: Files, column: Column) -> set[str]:
    """Files ending in .json that are one object about the data, without the column
    wanted; none if all are so.
    """
    found = [path for path in files.paths if path.lower().endswith(".json")]
    about = {
        path
        for path in found[:_LOOKED_AT]
        if _is_one_object(files.head(path, _HEAD), column)
    }
    return about if len(about) < len(files.paths) else set()


def _is_one_object(head: bytes, column: Column) -> bool:
    """Whether a beginning is that of a single object: over many lines, or all there is
    and without the column.
    """
    line, more, _ = head.strip().partition(b"\n")
    if not line.startswith(b"{") or (not more and len(head) == _HEAD):
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return bool(more) and line.rstrip().endswith((b"{", b"[", b","))
    return not more and not column.is_in(record)


def _is_about(path: str) -> bool:
    return PurePosixPath(path).name.lower() in ABOUT


def _is_archive(path: str) -> bool:
    return suffix(path) in ARCHIVES
