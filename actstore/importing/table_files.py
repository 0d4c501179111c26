"""Tables whose rows hold lists: Parquet, and folders of `datasets`.

SAELens' cached activations are of the latter kind.

A row of a column is a vector [d] or a sequence of vectors [context, d].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SourceError
from actstore.importing.source_arrays import Read, SourceArray, dtype_name

# Of a Parquet column, decoded at once: a row group may be as large as the file.
BATCH_BYTES = 4 << 20
# At most so many rows, however narrow they are.
BATCH_ROWS = 1 << 16
MARKS = ("state.json", "dataset_info.json")  # files of a saved data set


def open_parquet(path: Path, stack: ExitStack) -> list[SourceArray]:
    """Return the columns of a file that hold numbers."""
    import pyarrow.parquet as pq

    # Buffered ahead, a row group's whole column would be in memory; so it is read 1 MiB
    # at a time.
    file = stack.enter_context(
        pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    )
    n_rows = file.metadata.num_rows
    arrays = []
    for field in file.schema_arrow:
        if _holds_numbers(field.type):
            # Lists have any length, so the first row says how wide all must be.
            tail = _shape_of_row(_first_row(file, field.name)) if n_rows else ()
            reader = _SequentialReader(path, file, field.name, tail)
            dtype = _number_dtype(field.type)
            arrays.append(SourceArray(field.name, (n_rows, *tail), dtype, reader.read))
    return arrays


def open_dataset(path: Path, stack: ExitStack) -> list[SourceArray]:  # noqa: ARG001 (mapped files end with the data set)
    """Return the columns of a saved data set that hold numbers.

    Raises:
        SourceError: The folder holds several data sets.
    """
    from datasets import Dataset, load_from_disk

    dataset: Any = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        raise SourceError(
            f"{path}: it holds several data sets ({', '.join(dataset)}); give the"
            " folder of one"
        )
    table = dataset.with_format("arrow")
    n_rows = len(dataset)
    arrays = []
    for name in dataset.column_names:
        column_type = _without_extension(dataset.data.schema.field(name).type)
        if _holds_numbers(column_type):
            tail = _shape_of_row(_column(table[:1], name)) if n_rows else ()
            dtype = _number_dtype(column_type)
            read = _slice_reader(path, table, name, tail)
            arrays.append(SourceArray(name, (n_rows, *tail), dtype, read))
    return arrays


class _SequentialReader:
    """Reads one column of a Parquet file, from where it stands on.

    Rows are read in order in an import, and a row group can only be decoded from its
    start: to go back, or to jump, begins its row group again.
    """

    def __init__(self, path: Path, file: Any, name: str, tail: tuple[int, ...]) -> None:
        self._path = path
        self._file = file
        self._name = name
        self._tail = tail
        self._next_row = 0
        self._blocks: Iterator[NDArray[Any]] | None = None
        self._leftover: NDArray[Any] | None = None  # decoded, but not asked for yet

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows [stop - start, *tail]."""
        if self._blocks is None or start != self._next_row:
            self._seek(start)
        missing = stop - start
        taken = []
        while missing:
            block = self._next_block()
            taken.append(block[:missing])
            if len(block) > missing:
                self._leftover = block[missing:]
            missing -= len(taken[-1])
        self._next_row = stop
        return taken[0] if len(taken) == 1 else np.concatenate(taken)

    def _next_block(self) -> NDArray[Any]:
        if self._leftover is not None:
            block = self._leftover
            self._leftover = None
            return block
        assert self._blocks is not None
        return next(self._blocks)

    def _seek(self, start: int) -> None:
        """Begin the row group that holds row `start`, and pass over what is before."""
        metadata = self._file.metadata
        group = 0
        group_start = 0
        while group_start + metadata.row_group(group).num_rows <= start:
            group_start += metadata.row_group(group).num_rows
            group += 1
        # 8 bytes: no number of a column is wider
        row_bytes = 8 * int(np.prod(self._tail, dtype=np.int64))
        batch_rows = max(1, min(BATCH_BYTES // row_bytes, BATCH_ROWS))
        self._leftover = None
        self._blocks = self._decoded(group, batch_rows)
        skip = start - group_start
        while skip:
            block = self._next_block()
            if len(block) > skip:
                self._leftover = block[skip:]
            skip -= min(skip, len(block))

    def _decoded(self, group: int, batch_rows: int) -> Iterator[NDArray[Any]]:
        """Yield the column's rows from a row group on, in batches."""
        groups = list(range(group, self._file.metadata.num_row_groups))
        batches = self._file.iter_batches(
            batch_rows, row_groups=groups, columns=[self._name]
        )
        for batch in batches:
            yield _values(self._path, self._name, batch.column(self._name), self._tail)


def _first_row(file: Any, name: str) -> Any:
    return next(file.iter_batches(1, columns=[name])).column(name)


def _slice_reader(path: Path, table: Any, name: str, tail: tuple[int, ...]) -> Read:
    """Read rows of a data set's column."""

    def read(start: int, stop: int) -> NDArray[Any]:
        return _values(path, name, _column(table[start:stop], name), tail)

    return read


def _column(table: Any, name: str) -> Any:
    """Return a table's column as one array, without an extension type around it."""
    # A slice may reach over several chunks, and lists can be flattened in one only.
    column = table.column(name).combine_chunks()
    if hasattr(column, "num_chunks"):
        column = column.chunk(0)
    return getattr(column, "storage", column)


def _values(path: Path, name: str, column: Any, tail: tuple[int, ...]) -> NDArray[Any]:
    """Return a column's numbers, [n, *tail].

    Raises:
        SourceError: A row is missing, or has another shape than the first one.
    """
    import pyarrow.compute as pc

    n_rows = len(column)
    # Lists are taken off from outside in; `flatten` gives their elements in a row.
    for size in tail:
        lengths = pc.min_max(pc.list_value_length(column)).as_py()
        if column.null_count or set(lengths.values()) != {size}:
            raise SourceError(
                f"{path}: column {name}: wanted {list(tail)} values in every row, some"
                " have others"
            )
        column = column.flatten()
    if column.null_count:
        raise SourceError(f"{path}: column {name}: some of its values are null")
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers.reshape(n_rows, *tail)


def _shape_of_row(column: Any) -> tuple[int, ...]:
    """Return the shape of the one row of a column.

    A row of 3 vectors of 2 numbers is a list of 3 lists: flattened once it has 3
    elements, twice 6, so its shape is (3, 6 / 3).
    """
    shape: list[int] = []
    while column.type.num_fields:
        column = column.flatten()
        outer = max(1, int(np.prod(shape, dtype=np.int64)))
        shape.append(len(column) // outer)
    return tuple(shape)


def _holds_numbers(column_type: Any) -> bool:
    """Return whether a column holds numbers, or lists of them, however deep."""
    from pyarrow import types

    while (
        types.is_list(column_type)
        or types.is_large_list(column_type)
        or types.is_fixed_size_list(column_type)
    ):
        column_type = column_type.value_type
    return bool(types.is_floating(column_type) or types.is_integer(column_type))


def _without_extension(column_type: Any) -> Any:
    """Return the type as it is stored: `datasets` wraps arrays of several axes."""
    return getattr(column_type, "storage_type", column_type)


def _number_dtype(column_type: Any) -> str:
    while column_type.num_fields:
        column_type = column_type.value_type
    return dtype_name(column_type)
