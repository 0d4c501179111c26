"""Tables whose rows hold lists: Parquet, and `datasets` folders, which SAELens' cached
activations are.

A row of a column is a vector [d] or a sequence of vectors [context, d].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SourceError
from actstore.importing.arrays import Array, dtype_name

BATCH_BYTES = 4 << 20
MARKS = ("state.json", "dataset_info.json")


def open_parquet(path: Path, stack: ExitStack) -> list[Array]:
    """The columns of a file that hold numbers."""
    import pyarrow.parquet as pq

    file = stack.enter_context(
        pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    )
    n, found = file.metadata.num_rows, []
    for field in file.schema_arrow:
        if _depth(field.type) is not None:
            tail = _tail(_first(file, field.name)) if n else ()
            reader = _Sequential(path, file, field.name, tail)
            found.append(
                Array(field.name, (n, *tail), _element(field.type), reader.read)
            )
    return found


def open_dataset(path: Path, stack: ExitStack) -> list[Array]:  # noqa: ARG001 (mapped files end with the data set)
    """The columns of a saved data set that hold numbers."""
    from datasets import Dataset, load_from_disk

    found: Any = load_from_disk(str(path))
    if not isinstance(found, Dataset):
        raise SourceError(
            f"{path}: it holds several data sets ({', '.join(found)}); give the folder"
            " of one"
        )
    arrays, table = [], found.with_format("arrow")
    for name in found.column_names:
        kind = _plain_type(found.data.schema.field(name).type)
        if _depth(kind) is not None:
            tail = _tail(_column(table[:1], name)) if len(found) else ()
            arrays.append(
                Array(
                    name,
                    (len(found), *tail),
                    _element(kind),
                    partial(_rows, path, table, name, tail),
                )
            )
    return arrays


class _Sequential:
    """One column, read on from where it stands; going back begins at the row group
    again.
    """

    def __init__(self, path: Path, file: Any, name: str, tail: tuple[int, ...]) -> None:
        self._path, self._file, self._name, self._tail = path, file, name, tail
        self._at = 0
        self._batches: Iterator[NDArray[Any]] | None = None
        self._left: list[NDArray[Any]] = []

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [stop - start, *tail]."""
        if self._batches is None or start != self._at:
            self._seek(start)
        assert self._batches is not None
        n, found = stop - start, []
        while n:
            block = self._left.pop() if self._left else next(self._batches)
            found.append(block[:n])
            if len(block) > n:
                self._left.append(block[n:])
            n -= len(found[-1])
        self._at = stop
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _seek(self, start: int) -> None:
        meta, group, before = self._file.metadata, 0, 0
        while before + meta.row_group(group).num_rows <= start:
            before += meta.row_group(group).num_rows
            group += 1
        groups = list(range(group, meta.num_row_groups))
        size = max(
            1,
            min(BATCH_BYTES // (8 * int(np.prod(self._tail, dtype=np.int64))), 1 << 16),
        )
        batches = self._file.iter_batches(size, row_groups=groups, columns=[self._name])
        self._batches = (
            _values(self._path, self._name, one.column(self._name), self._tail)
            for one in batches
        )
        self._left, skip = [], start - before
        while skip:
            block = next(self._batches)
            if len(block) > skip:
                self._left = [block[skip:]]
            skip -= min(skip, len(block))


def _first(file: Any, name: str) -> Any:
    return next(file.iter_batches(1, columns=[name])).column(name)


def _rows(
    path: Path, table: Any, name: str, tail: tuple[int, ...], start: int, stop: int
) -> NDArray[Any]:
    return _values(path, name, _column(table[start:stop], name), tail)


def _column(table: Any, name: str) -> Any:
    """One array of a table's column, extension types taken off."""
    column = table.column(name).combine_chunks()
    if hasattr(column, "num_chunks"):
        column = column.chunk(0)
    return getattr(column, "storage", column)


def _values(path: Path, name: str, column: Any, tail: tuple[int, ...]) -> NDArray[Any]:
    """[n, *tail]. Raises SourceError where a row is missing or has another length."""
    import pyarrow.compute as pc

    n = len(column)
    for size in tail:
        lengths = pc.min_max(pc.list_value_length(column)).as_py()
        if column.null_count or {*lengths.values()} != {size}:
            raise SourceError(
                f"{path}: column {name}: wanted {list(tail)} values in every row, some"
                " have others"
            )
        column = column.flatten()
    if column.null_count:
        raise SourceError(f"{path}: column {name}: some of its values are null")
    found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found.reshape(n, *tail)


def _tail(column: Any) -> tuple[int, ...]:
    """The shape of a first row."""
    tail: list[int] = []
    while column.type.num_fields:
        column = column.flatten()
        tail.append(len(column) // max(1, int(np.prod(tail, dtype=np.int64))))
    return tuple(tail)


def _depth(kind: Any) -> int | None:
    """How many lists lie around the numbers of a column; None where there are no
    numbers.
    """
    from pyarrow import types

    depth = 0
    while (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
    ):
        kind, depth = kind.value_type, depth + 1
    return depth if types.is_floating(kind) or types.is_integer(kind) else None


def _plain_type(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def _element(kind: Any) -> str:
    while kind.num_fields:
        kind = kind.value_type
    return dtype_name(kind)
