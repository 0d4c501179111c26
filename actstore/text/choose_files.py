"""Choose which files of a folder are the corpus, and tell what kind they are of.

Files without documents (a README, metadata, another format) are left out, and every
file that is left out is told of.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from actstore.errors import CorpusError
from actstore.text.corpus_files import ARCHIVES, CorpusFiles, data_suffix
from actstore.text.documents import DocumentColumn
from actstore.text.split_names import files_of_split, first_names

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
SUFFIXES_OF_KIND = {"jsonl": JSONL_SUFFIXES, "parquet": PARQUET_SUFFIXES}
# Files that describe data. The `datasets` library passes over the same names.
DESCRIPTIONS = frozenset(
    {
        "readme.md",
        "config.json",
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
    }
)
# A folder may hold thousands of files ending in .json, on a server far away: only the
# beginnings of so many are read.
_MOST_LOOKED_INTO = 100
_HEAD_BYTES = 1 << 16


def kind_of_files(files: CorpusFiles) -> str:
    """Return what files are by their names: "dataset", "parquet", "jsonl" or "text"."""
    names = {PurePosixPath(path).name for path in files.paths}
    # Files that `save_to_disk` writes beside the data.
    is_saved_dataset = "dataset_dict.json" in names or (
        "state.json" in names and "dataset_info.json" in names
    )
    if files.given != "file" and is_saved_dataset:
        return "dataset"
    # A file that the user named is read, whatever it is called.
    data_paths = [
        path
        for path in files.paths
        if files.given == "file" or not _is_description(path)
    ]
    suffixes = {data_suffix(path) for path in data_paths}
    if not suffixes.isdisjoint(PARQUET_SUFFIXES):
        return "parquet"
    if not suffixes.isdisjoint(JSONL_SUFFIXES):
        return "jsonl"
    return "text"


def files_with_documents(
    files: CorpusFiles, kind: str, split: str | None, column: DocumentColumn
) -> tuple[CorpusFiles, list[str]]:
    """Return the files to read, and a sentence on each group that is left out.

    Raises:
        CorpusError: Nothing is left, there is no such split, or a file is an archive.
    """
    notes: list[str] = []
    if files.given != "file":
        descriptions = {path for path in files.paths if _is_description(path)}
        files = _without(files, descriptions, "no documents", notes)
        files = _without(files, _metadata(files, column), "no documents", notes)
        files = _only_of_kind(files, kind, notes)
    files, note = files_of_split(files, split, named_only=kind != "text")
    if note:
        notes.append(note)
    for path in files.paths:
        if data_suffix(path) in ARCHIVES:
            raise CorpusError(
                f"{path}: an archive of several files is no corpus; unpack it, and give"
                " the folder with its files"
            )
    return files, notes


def _without(
    files: CorpusFiles, left_out: set[str], reason: str, notes: list[str]
) -> CorpusFiles:
    """Return the files but for those left out, and add a sentence to `notes`."""
    if not left_out:
        return files
    kept = tuple(path for path in files.paths if path not in left_out)
    names = first_names(sorted(files.relative(path) for path in left_out))
    if not kept:
        raise CorpusError(
            f"{files.root}: there is no file with documents in it, only {names}"
        )
    plural = "" if len(left_out) == 1 else "s"
    notes.append(f"{len(left_out):,} file{plural} left out, {reason}: {names}")
    return files.only(kept)


def _only_of_kind(files: CorpusFiles, kind: str, notes: list[str]) -> CorpusFiles:
    """Return the files of a kind in a mixed folder; all where none has its suffix."""
    suffixes = SUFFIXES_OF_KIND.get(kind, ())
    others = {path for path in files.paths if data_suffix(path) not in suffixes}
    # Files may be called anything when the user says what they are (--corpus-kind).
    if not suffixes or len(others) == len(files.paths):
        return files
    reason = f"not {' or '.join(suffixes)} (the corpus is read as {kind})"
    return _without(files, others, reason, notes)


def _metadata(files: CorpusFiles, column: DocumentColumn) -> set[str]:
    """Return the .json files that are one object about the data, without the column.

    Empty if all files are so: then that is what the user wants to read.
    """
    json_paths = [path for path in files.paths if path.lower().endswith(".json")]
    metadata = set()
    for path in json_paths[:_MOST_LOOKED_INTO]:
        if _is_single_object(files.head(path, _HEAD_BYTES), column):
            metadata.add(path)
    return metadata if len(metadata) < len(files.paths) else set()


def _is_single_object(head: bytes, column: DocumentColumn) -> bool:
    """Return whether a file that begins with `head` is one JSON object, not JSON lines.

    It is where the object goes over many lines, or is all there is and lacks the
    column: `{"text": "a"}` alone is a corpus of one document.
    """
    first_line, more, _ = head.strip().partition(b"\n")
    if not first_line.startswith(b"{"):
        return False
    if not more and len(head) == _HEAD_BYTES:
        # One line, longer than what was read: a long document.
        return False
    try:
        record = json.loads(first_line)
    except (ValueError, RecursionError):
        # `{` or `"key": [` at the end of the first line: the object goes on below.
        opens = first_line.rstrip().endswith((b"{", b"[", b","))
        return bool(more) and opens
    return not more and not column.is_in(record)


def _is_description(path: str) -> bool:
    return PurePosixPath(path).name.lower() in DESCRIPTIONS
