"""Where documents come from. Every source can start anywhere: a piece carries the cursor that leads back to it.

A cursor is a small JSON object, its meaning known to its source alone: `{"document": i}` (builtin, memory),
`{"file": i, "offset": bytes}` (text, JSONL; offsets of the decompressed bytes), `{"file": i, "group": g, "row": r}`
(Parquet), `{"row": r}` (data sets).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sized
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from actstore.errors import CorpusError
from actstore.harvesting.files import Files, exists, find, reading, suffix
from schemas.source import CorpusSource

PIECE_BYTES = 4 << 20
FOOTERS = 100  # Parquet files whose footers are read to know a corpus' size
Cursor = dict[str, Any]
Content = Any  # text, or token ids (a sequence or array of integers), or None


class Piece(NamedTuple):
    """A document, or a part of a long one. content: str, or token ids where the corpus is tokenised already.

    size: what it takes of the corpus, in the measure of `Corpus.size`.
    """

    cursor: Cursor
    content: Content
    first: bool = True
    size: int = 1


class Corpus(Protocol):
    """A source of documents."""

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        """Everything from `cursor` on (None: from the beginning). Raises CorpusError."""
        ...

    def digest(self) -> str | None:
        """Identifies the contents, where that is known without reading them all."""
        ...

    def size(self) -> int | None:
        """The sum of all pieces' sizes (bytes of files, rows), where that is known without reading them all."""
        ...


def open_corpus(source: CorpusSource) -> Corpus:
    """The corpus a source names; `kind="auto"` decides from the name and from what lies there. Raises CorpusError."""
    kind = _kind(source) if source.kind == "auto" else source.kind
    if kind == "builtin":
        return Builtin(source.name)
    if kind == "text":
        return TextFiles(find(source.name))
    if kind == "jsonl":
        return JsonLines(_only(find(source.name), JSONL), source)
    if kind == "parquet":
        return Parquet(_only(find(source.name), PARQUET), source)
    if kind in {"dataset", "hub"}:
        from actstore.harvesting.datasets import open_dataset

        return open_dataset(source, hub=kind == "hub")
    raise CorpusError(f"corpus {source.name!r} of kind {kind!r}: pass its documents as `tokens=` from Python")


JSONL = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")


def _kind(source: CorpusSource) -> str:
    if source.name.startswith("builtin:"):
        return "builtin"
    if not exists(source.name):
        if "://" not in source.name and source.name.count("/") <= 1 and not source.name.startswith(("/", ".", "~")):
            return "hub"
        find(source.name)  # raises, with what there is instead
    paths = find(source.name).paths
    names = {PurePosixPath(path).name for path in paths}
    if names & {"dataset_dict.json", "state.json"}:
        return "dataset"
    suffixes = {suffix(path) for path in paths}
    if suffixes & set(PARQUET):
        return "parquet"
    return "jsonl" if suffixes & set(JSONL) else "text"


def _only(files: Files, suffixes: tuple[str, ...]) -> Files:
    """The files of a kind in a mixed folder; all of them where none has its suffix."""
    kept = tuple(path for path in files.paths if suffix(path) in suffixes)
    return Files(files.fs, kept or files.paths)


class Builtin:
    """`builtin:stdlib`: the standard library of the running interpreter. Cursor: {"document": i}, i among its paths."""

    def __init__(self, name: str) -> None:
        if name != "builtin:stdlib":
            raise CorpusError(f"there is no corpus {name!r}; the one that ships is builtin:stdlib")

    @cached_property
    def _files(self) -> Files:
        import fsspec

        from actstore.builtin import corpus

        root = corpus.library()
        return Files(fsspec.filesystem("file"), tuple(str(root / path) for path in corpus.paths(root)))

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        start = cursor["document"] if cursor else 0
        for i, path in enumerate(itertools.islice(self._files.paths, start, None), start):
            try:
                yield Piece({"document": i}, Path(path).read_text(encoding="utf-8"), size=Path(path).stat().st_size)
            except UnicodeDecodeError:  # the library's few files that test other encodings
                continue

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        return self._files.size()


class TextFiles:
    """UTF-8 files, one document each; long ones come in pieces that end at a line's end."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        first, offset = (cursor["file"], cursor["offset"]) if cursor else (0, 0)
        for i in range(first, len(self._files.paths)):
            with self._files.open(i) as file:
                file.seek(offset)
                while data := file.read(PIECE_BYTES):
                    data += file.readline()
                    text = self._decode(i, offset, data)
                    yield Piece({"file": i, "offset": offset}, text, first=offset == 0, size=len(data))
                    offset += len(data)
            offset = 0

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        return self._files.size()

    def _decode(self, index: int, offset: int, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            path, at = self._files.paths[index], offset + error.start
            raise CorpusError(
                f"{path}: not UTF-8 text at byte {at}; remove the file from the corpus, convert it, "
                "or say what it is (--corpus-kind jsonl, parquet or dataset)"
            ) from error


class JsonLines:
    """One JSON object per line, a document in one of its columns."""

    def __init__(self, files: Files, source: CorpusSource) -> None:
        self._files, self._column = files, source.token_column or source.text_column

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        first, offset = (cursor["file"], cursor["offset"]) if cursor else (0, 0)
        for i in range(first, len(self._files.paths)):
            with self._files.open(i) as file:
                file.seek(offset)
                while line := file.readline():
                    if line.strip():
                        yield Piece({"file": i, "offset": offset}, self._content(i, offset, line), size=len(line))
                    offset += len(line)
            offset = 0

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        return self._files.size()

    def _content(self, index: int, offset: int, line: bytes) -> Content:
        where = f"{self._files.paths[index]}, line at byte {offset}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{where}: not JSON: {error}; every line must be one object") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: wanted an object, got {type(record).__name__}; every line must be one object")
        check_column(self._column, list(record), where)
        return record[self._column]


class Parquet:
    """A column of Parquet files, read one row group at a time."""

    def __init__(self, files: Files, source: CorpusSource) -> None:
        self._files, self._column = files, source.token_column or source.text_column

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        first, group, row = (cursor["file"], cursor["group"], cursor["row"]) if cursor else (0, 0, 0)
        for i in range(first, len(self._files.paths)):
            yield from self._file(i, group, row)
            group = row = 0

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        """Rows, from the files' footers; of many files some are asked, and the rest follow from their bytes."""
        paths = self._files.paths[:: -(-len(self._files.paths) // FOOTERS)]
        rows = sum(self._rows(path) for path in paths)
        if len(paths) == len(self._files.paths):
            return rows
        some, every = self._files.size(paths), self._files.size()
        return round(rows * every / some) if some and every else None

    def _rows(self, path: str) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with reading(path), self._files.fs.open(path, "rb") as raw, pq.ParquetFile(raw) as file:
                return int(file.metadata.num_rows)
        except pa.ArrowException as error:
            raise CorpusError(f"cannot read {path}: {error}; remove the file from the corpus or repair it") from error

    def _file(self, index: int, group: int, row: int) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._files.paths[index]
        try:
            with reading(path), self._files.fs.open(path, "rb") as raw, pq.ParquetFile(raw) as file:
                check_column(self._column, file.schema_arrow.names, path)
                for g in range(group, file.num_row_groups):
                    batches = file.iter_batches(1024, row_groups=[g], columns=[self._column])
                    values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
                    for r, value in enumerate(itertools.islice(values, row, None), row):
                        yield Piece({"file": index, "group": g, "row": r}, value.as_py())
                    row = 0
        except pa.ArrowException as error:
            raise CorpusError(f"cannot read {path}: {error}; remove the file from the corpus or repair it") from error


class Memory:
    """Documents that are in memory already: texts, or sequences of token ids. Cursor: {"document": i}.

    To go on after an interruption the iterable must give the same documents again.
    """

    def __init__(self, documents: Iterable[Content], *, separate: bool = True) -> None:
        self._documents, self._separate = documents, separate

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        start = cursor["document"] if cursor else 0
        for i, content in enumerate(itertools.islice(self._documents, start, None), start):
            yield Piece({"document": i}, content, first=self._separate)

    def digest(self) -> str | None:
        return None

    def size(self) -> int | None:
        return len(self._documents) if isinstance(self._documents, Sized) else None


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Raises CorpusError for a column that is not there, with those that are."""
    if column not in columns:
        have = ", ".join(sorted(columns)) or "none"
        raise CorpusError(f"{where}: there is no column {column!r}; it has {have} (name it with --text-column)")
