"""Documents in files: plain text, JSON lines, Parquet. Each reads from any cursor on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import IO, Any

from actstore.errors import CorpusError
from actstore.format.file_systems import GIT_LFS
from actstore.text.corpus_files import Files, reading
from actstore.text.documents import Column, Content, Cursor, Piece

PIECE_BYTES = 4 << 20
FOOTERS = 100  # Parquet files whose footers are read to know a corpus' size
_BLOCK = 1 << 20


class TextFiles:
    """UTF-8 files, one document each; long ones come in pieces that end at a line's
    end.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        first, offset = (cursor["file"], cursor["offset"]) if cursor else (0, 0)
        for i in range(first, len(self._files.paths)):
            with self._files.open(i, offset) as file:
                data = _some_lines(file)
                while data:
                    following = _some_lines(file)
                    place = {"file": i, "offset": offset}
                    text = self._decode(i, offset, data)
                    yield Piece(
                        place,
                        text,
                        first=offset == 0,
                        size=len(data),
                        last=not following,
                    )
                    offset += len(data)
                    data = following
            offset = 0

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        return self._files.size()

    def _decode(self, index: int, offset: int, data: bytes) -> str:
        path = self._files.paths[index]
        advice = (
            "remove the file from the corpus, convert it, or say what it is"
            " (--corpus-kind jsonl, parquet or dataset)"
        )
        if offset == 0 and data.startswith(GIT_LFS):
            raise _pointer(path)
        if (at := data.find(b"\0")) >= 0:
            raise CorpusError(
                f"{path}: not text but a binary file, with a NUL at byte {offset + at};"
                f" {advice}"
            )
        try:
            # without the mark that some editors begin with
            return data.decode("utf-8" if offset else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path}: not UTF-8 text at byte {offset + error.start}; {advice}"
            ) from error


class JsonLines:
    """One JSON object per line, a document in one of its columns."""

    def __init__(self, files: Files, column: Column) -> None:
        self._files, self._column = files, column

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        first, offset = (cursor["file"], cursor["offset"]) if cursor else (0, 0)
        for i in range(first, len(self._files.paths)):
            with self._files.open(i, offset) as file:
                while line := file.readline():
                    if line.strip():
                        yield Piece(
                            {"file": i, "offset": offset},
                            self._content(i, offset, line),
                            size=len(line),
                        )
                    offset += len(line)
            offset = 0

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        return self._files.size()

    def _content(self, index: int, offset: int, line: bytes) -> Content:
        if offset == 0 and line.startswith(GIT_LFS):
            raise _pointer(self._files.paths[index])
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            where = self._where(index, offset)
            raise CorpusError(
                f"{where}: not JSON: {error}; every line must be one object"
            ) from error
        if not isinstance(record, dict):
            where, got = self._where(index, offset), type(record).__name__
            raise CorpusError(
                f"{where}: wanted an object, got {got}; every line must be one object"
            )
        try:
            return self._column.of_row(record, "")
        except CorpusError as error:
            raise CorpusError(f"{self._where(index, offset)}{error}") from error

    def _where(self, index: int, offset: int) -> str:
        """For a message: the file and the line, which is counted only now."""
        number, left = 1, offset
        with self._files.open(index) as file:
            while left > 0 and (data := file.read(min(left, _BLOCK))):
                number, left = number + data.count(b"\n"), left - len(data)
        return f"{self._files.paths[index]}, line {number} (at byte {offset})"


class Parquet:
    """A column of Parquet files, read one row group at a time."""

    def __init__(self, files: Files, column: Column) -> None:
        self._files, self._column = files, column

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        first, group, row = (
            (cursor["file"], cursor["group"], cursor["row"]) if cursor else (0, 0, 0)
        )
        for i in range(first, len(self._files.paths)):
            yield from self._file(i, group, row)
            group = row = 0

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        """Rows, from the files' footers; of many files some are asked, and the rest
        follow from their bytes.
        """
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
            with (
                reading(path),
                self._files.fs.open(path, "rb") as raw,
                pq.ParquetFile(raw) as file,
            ):
                return int(file.metadata.num_rows)
        except pa.ArrowException as error:
            raise self._broken(path, error) from error

    def _file(self, index: int, group: int, row: int) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._files.paths[index]
        try:
            with (
                reading(path),
                self._files.fs.open(path, "rb") as raw,
                pq.ParquetFile(raw) as file,
            ):
                inside = self._inside(file.schema_arrow, path)
                before = sum(file.metadata.row_group(g).num_rows for g in range(group))
                for g in range(group, file.num_row_groups):
                    for r, value in enumerate(
                        itertools.islice(_values(file, g, inside), row, None), row
                    ):
                        content = self._column.checked(
                            value.as_py(), f"{path}, row {before + r}"
                        )
                        yield Piece({"file": index, "group": g, "row": r}, content)
                    before += file.metadata.row_group(g).num_rows
                    row = 0
        except pa.ArrowException as error:
            raise self._broken(path, error) from error

    def _inside(self, schema: Any, path: str) -> list[str]:
        """The column, and the fields inside it. Raises CorpusError."""
        import pyarrow as pa

        steps, there = self._column.path(schema.names), schema
        for step in steps:
            if (
                not isinstance(there, (pa.Schema, pa.StructType))
                or there.get_field_index(step) < 0
            ):
                raise self._column.missing(_leaves(schema), path)
            there = there.field(there.get_field_index(step)).type
        return steps

    def _broken(self, path: str, error: Exception) -> CorpusError:
        if self._files.head(path, len(GIT_LFS)) == GIT_LFS:
            return _pointer(path)
        return CorpusError(
            f"cannot read {path}: {error}; remove the file from the corpus or repair it"
        )


def _some_lines(file: IO[bytes]) -> bytes:
    data = file.read(PIECE_BYTES)
    return data + file.readline() if data else data


def _pointer(path: str) -> CorpusError:
    return CorpusError(
        f"{path}: this is a git-LFS pointer, not the file itself; run `git lfs pull` to"
        " get that"
    )


def _values(file: Any, group: int, inside: list[str]) -> Iterator[Any]:
    """The values of a column (or of a field inside it) in a row group."""
    import pyarrow.compute as pc

    for batch in file.iter_batches(
        1024, row_groups=[group], columns=[".".join(inside)]
    ):
        column = batch.column(batch.schema.get_field_index(inside[0]))
        yield from pc.struct_field(column, inside[1:]) if inside[1:] else column


def _leaves(schema: Any) -> Iterator[str]:
    """Columns, those inside others as `a.b`."""
    import pyarrow as pa

    for field in schema:
        if isinstance(field.type, pa.StructType):
            yield from (f"{field.name}.{inner}" for inner in _leaves(field.type))
        else:
            yield field.name
