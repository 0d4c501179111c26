"""numpy's `.npy`: one array in a file.

The header is read here, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from actstore.errors import SourceError
from actstore.importing.source_arrays import (
    Read,
    SourceArray,
    dtype_name,
    read_plain_rows,
)

# Version 3.0 is for names of fields outside of Latin-1, which no plain array has.
_READ_HEADER = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


class _Header(NamedTuple):
    """The header of a `.npy` file, which stands before the array's values.

    Attributes:
        shape: The array's shape.
        by_columns: Whether it lies in Fortran's order, the first axis fastest.
        dtype: Its dtype, with the file's byte order.
    """

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]


def open_npy(path: Path, stack: ExitStack) -> list[SourceArray]:
    """Return the array of a file, in either order and byte order.

    Raises:
        SourceError: It is no plain array, or the file's size is another.
    """
    file = stack.enter_context(path.open("rb"))
    header = _read_header(path, file)
    # A file that was only half copied is told by its size, before a row is read.
    offset = file.tell()
    size = path.stat().st_size - offset
    wanted = math.prod(header.shape) * header.dtype.itemsize
    if size != wanted:
        what = "it is cut short" if size < wanted else "it holds more than one array"
        raise SourceError(
            f"{path}: {what}: {header.dtype} {list(header.shape)} takes {wanted:,}"
            f" bytes, it has {size:,}"
        )
    # An empty file cannot be mapped, and needs not be.
    if header.by_columns and wanted:
        read = _columns_reader(path, offset, header)
    else:
        read = _rows_reader(file, offset, header)
    return [SourceArray(None, header.shape, dtype_name(header.dtype), read)]


def _read_header(path: Path, file: IO[bytes]) -> _Header:
    version = npy_format.read_magic(file)
    if version not in _READ_HEADER:
        raise SourceError(
            f"{path}: .npy of version {version} has named fields; save a plain array"
        )
    header = _Header(*_READ_HEADER[version](file))
    if header.dtype.hasobject:
        raise SourceError(
            f"{path}: it holds Python objects (a pickle, which could run code), so it"
            " was not read; save a plain array"
        )
    if header.dtype.kind == "V":
        raise SourceError(
            f"{path}: its dtype is {header.dtype.str!r}, bytes without a meaning (numpy"
            " writes bfloat16 so); save it as safetensors or float32"
        )
    return header


def _rows_reader(file: IO[bytes], offset: int, header: _Header) -> Read:
    """Read rows that lie one after the other."""
    shape = header.shape
    dtype = header.dtype

    def read(start: int, stop: int) -> NDArray[Any]:
        data = read_plain_rows(file, offset, shape, dtype.itemsize, start, stop)
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return read


def _columns_reader(path: Path, offset: int, header: _Header) -> Read:
    """Read rows whose values lie scattered over the file, which is mapped for that."""
    mapped = np.memmap(path, header.dtype, "r", offset, header.shape, order="F")

    def read(start: int, stop: int) -> NDArray[Any]:
        # A tensor wants values that lie row by row, which here means a copy.
        return np.array(mapped[start:stop], order="C")

    return read
