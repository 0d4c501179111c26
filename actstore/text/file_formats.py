"""Read documents from files: plain text, JSON lines, or Parquet.

`FileCorpus` goes through the files of a corpus; a format (`TextFormat`,
`JsonLinesFormat`, `ParquetFormat`) reads one of them, from any point in it on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import IO, Any, Protocol

from actstore.errors import CorpusError
from actstore.format.file_systems import GIT_LFS
from actstore.text.corpus_files import CorpusFiles, read_errors_named
from actstore.text.documents import Content, CorpusCursor, DocumentColumn, Piece

# Bytes of a long text file that are read and tokenised at a time.
PIECE_BYTES = 4 << 20
FOOTERS = 100  # Parquet files whose footers are read to know a corpus' size
_BLOCK_BYTES = 1 << 20  # read at a time where lines are counted
_PARQUET_BATCH = 1024  # rows that pyarrow decodes at a time


class FileFormat(Protocol):
    """Reads the documents in one file of a corpus."""

    def read(
        self, files: CorpusFiles, index: int, start: CorpusCursor | None
    ) -> Iterator[Piece]:
        """Give the pieces in the file `files.paths[index]`.

        Args:
            files: The files of the corpus.
            index: The index of the file to read.
            start: The cursor to begin at; None: the beginning of the file.

        Raises:
            CorpusError: The file cannot be read, or holds what is no document.
        """
        ...

    def size(self, files: CorpusFiles) -> int | None:
        """Return the sum of all pieces' sizes, where it is known without reading."""
        ...


class FileCorpus:
    """Documents in files, one file after the other.

    Its cursor has the number of the file under "file", and what the format needs to
    find the place in it.
    """

    def __init__(self, files: CorpusFiles, file_format: FileFormat) -> None:
        self._files = files
        self._format = file_format

    def pieces(self, cursor: CorpusCursor | None) -> Iterator[Piece]:
        """See `Corpus.pieces`."""
        first = cursor["file"] if cursor else 0
        for index in range(first, len(self._files.paths)):
            # Only the first of these files was read in part before.
            start = cursor if index == first else None
            yield from self._format.read(self._files, index, start)

    def digest(self) -> str | None:
        """See `Corpus.digest`."""
        return self._files.digest()

    def size(self) -> int | None:
        """See `Corpus.size`."""
        return self._format.size(self._files)


class TextFormat:
    """UTF-8 text: a file is one document. Cursor: `{"file": i, "offset": bytes}`.

    A long file comes in several pieces, each of which ends at a line's end.
    """

    def read(
        self, files: CorpusFiles, index: int, start: CorpusCursor | None
    ) -> Iterator[Piece]:
        """See `FileFormat.read`."""
        path = files.paths[index]
        offset = start["offset"] if start else 0
        with files.open(index, offset) as file:
            data = _some_lines(file)
            while data:
                # A piece says whether it is the last of its document, so the next one
                # is read before it is given.
                following = _some_lines(file)
                yield Piece(
                    {"file": index, "offset": offset},
                    _decoded(data, path, offset),
                    first=offset == 0,
                    size=len(data),
                    last=not following,
                )
                offset += len(data)
                data = following

    def size(self, files: CorpusFiles) -> int | None:
        """Return the bytes of all files."""
        return files.size()


class JsonLinesFormat:
    """One JSON object in each line, with the document in one of its columns.

    Cursor: `{"file": i, "offset": bytes}`.
    """

    def __init__(self, column: DocumentColumn) -> None:
        self._column = column

    def read(
        self, files: CorpusFiles, index: int, start: CorpusCursor | None
    ) -> Iterator[Piece]:
        """See `FileFormat.read`."""
        offset = start["offset"] if start else 0
        with files.open(index, offset) as file:
            while line := file.readline():
                if line.strip():
                    yield Piece(
                        {"file": index, "offset": offset},
                        self._document(files, index, offset, line),
                        size=len(line),
                    )
                offset += len(line)

    def size(self, files: CorpusFiles) -> int | None:
        """Return the bytes of all files."""
        return files.size()

    def _document(
        self, files: CorpusFiles, index: int, offset: int, line: bytes
    ) -> Content:
        if offset == 0 and line.startswith(GIT_LFS):
            raise _lfs_pointer_error(files.paths[index])
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            where = _line_text(files, index, offset)
            raise CorpusError(
                f"{where}: not JSON: {error}; every line must be one object"
            ) from error
        if not isinstance(record, dict):
            where = _line_text(files, index, offset)
            raise CorpusError(
                f"{where}: wanted an object, got {type(record).__name__}; every line"
                " must be one object"
            )
        try:
            return self._column.of_row(record, "")
        except CorpusError as error:
            # Lines are counted only now, for the message.
            where = _line_text(files, index, offset)
            raise CorpusError(f"{where}{error}") from error


class ParquetFormat:
    """One column of Parquet files, read one row group at a time.

    Cursor: `{"file": i, "group": g, "row": r}`, the row counted inside its group.
    """

    def __init__(self, column: DocumentColumn) -> None:
        self._column = column

    def read(
        self, files: CorpusFiles, index: int, start: CorpusCursor | None
    ) -> Iterator[Piece]:
        """See `FileFormat.read`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = files.paths[index]
        first_group = start["group"] if start else 0
        first_row = start["row"] if start else 0
        try:
            with (
                read_errors_named(path),
                files.fs.open(path, "rb") as raw,
                pq.ParquetFile(raw) as file,
            ):
                fields = self._fields(file.schema_arrow, path)
                # Cursors count rows inside a group, messages count them in the file.
                rows_before = 0
                for group in range(first_group):
                    rows_before += file.metadata.row_group(group).num_rows
                for group in range(first_group, file.num_row_groups):
                    values = _column_values(file, group, fields)
                    for row, value in enumerate(
                        itertools.islice(values, first_row, None), first_row
                    ):
                        where = f"{path}, row {rows_before + row}"
                        document = self._column.checked(value.as_py(), where)
                        cursor = {"file": index, "group": group, "row": row}
                        yield Piece(cursor, document)
                    rows_before += file.metadata.row_group(group).num_rows
                    first_row = 0
        except pa.ArrowException as error:
            raise _parquet_error(files, path, error) from error

    def size(self, files: CorpusFiles) -> int | None:
        """Return the number of rows, from the files' footers.

        Of many files only some footers are read, and the rest follows from bytes: if
        84 of 250 files have 1,000 rows in 3 MB, and all have 9 MB, that is 3,000 rows.
        """
        # Rounded up: every third of 250 files, so that no more than FOOTERS are read.
        every_nth = -(-len(files.paths) // FOOTERS)
        asked_paths = files.paths[::every_nth]
        rows = sum(_footer_rows(files, path) for path in asked_paths)
        if len(asked_paths) == len(files.paths):
            return rows
        asked_bytes = files.size(asked_paths)
        all_bytes = files.size()
        if not asked_bytes or not all_bytes:
            return None
        return round(rows * all_bytes / asked_bytes)

    def _fields(self, schema: Any, path: str) -> list[str]:
        """Return the column's name and the fields to go down to.

        Raises:
            CorpusError: The file has no such column or field.
        """
        import pyarrow as pa

        steps = self._column.path(schema.names)
        level = schema
        for step in steps:
            has_fields = isinstance(level, (pa.Schema, pa.StructType))
            if not has_fields or level.get_field_index(step) < 0:
                raise self._column.missing(_nested_names(schema), path)
            level = level.field(level.get_field_index(step)).type
        return steps


def _some_lines(file: IO[bytes]) -> bytes:
    """Read about PIECE_BYTES, up to a line's end; nothing at the end of the file."""
    data = file.read(PIECE_BYTES)
    if not data:
        return data
    return data + file.readline()


def _decoded(data: bytes, path: str, offset: int) -> str:
    """Return bytes of a file, from `offset` on, as text. Raises CorpusError."""
    advice = (
        "remove the file from the corpus, convert it, or say what it is"
        " (--corpus-kind jsonl, parquet or dataset)"
    )
    if offset == 0 and data.startswith(GIT_LFS):
        raise _lfs_pointer_error(path)
    # A binary file may be valid UTF-8, but text has no NUL.
    nul = data.find(b"\0")
    if nul >= 0:
        raise CorpusError(
            f"{path}: not text but a binary file, with a NUL at byte {offset + nul};"
            f" {advice}"
        )
    # Some editors put a byte order mark first, which is no part of the text.
    encoding = "utf-8-sig" if offset == 0 else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 text at byte {offset + error.start}; {advice}"
        ) from error


def _line_text(files: CorpusFiles, index: int, offset: int) -> str:
    """Return, for a message, the file and the number of the line at an offset."""
    number = 1
    bytes_left = offset
    with files.open(index) as file:
        while bytes_left > 0:
            data = file.read(min(bytes_left, _BLOCK_BYTES))
            if not data:
                break
            number += data.count(b"\n")
            bytes_left -= len(data)
    return f"{files.paths[index]}, line {number} (at byte {offset})"


def _lfs_pointer_error(path: str) -> CorpusError:
    return CorpusError(
        f"{path}: this is a git-LFS pointer, not the file itself; run `git lfs pull` to"
        " get that"
    )


def _footer_rows(files: CorpusFiles, path: str) -> int:
    """Return how many rows a Parquet file has. Raises CorpusError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (
            read_errors_named(path),
            files.fs.open(path, "rb") as raw,
            pq.ParquetFile(raw) as file,
        ):
            return int(file.metadata.num_rows)
    except pa.ArrowException as error:
        raise _parquet_error(files, path, error) from error


def _parquet_error(files: CorpusFiles, path: str, error: Exception) -> CorpusError:
    if files.head(path, len(GIT_LFS)) == GIT_LFS:
        return _lfs_pointer_error(path)
    return CorpusError(
        f"cannot read {path}: {error}; remove the file from the corpus or repair it"
    )


def _column_values(file: Any, group: int, fields: list[str]) -> Iterator[Any]:
    """Give the values of a column, or of a field inside it, in one row group."""
    import pyarrow.compute as pc

    column_name = fields[0]
    inner_fields = fields[1:]
    for batch in file.iter_batches(
        _PARQUET_BATCH, row_groups=[group], columns=[".".join(fields)]
    ):
        column = batch.column(batch.schema.get_field_index(column_name))
        if inner_fields:
            column = pc.struct_field(column, inner_fields)
        yield from column


def _nested_names(schema: Any) -> Iterator[str]:
    """Give the names of columns, those inside others as `a.b`."""
    import pyarrow as pa

    for field in schema:
        if isinstance(field.type, pa.StructType):
            for inner_name in _nested_names(field.type):
                yield f"{field.name}.{inner_name}"
        else:
            yield field.name
