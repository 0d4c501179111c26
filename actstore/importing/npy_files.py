"""numpy's `.npy`: one array in a file. The header is read here and nothing is ever
unpickled.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from actstore.errors import SourceError
from actstore.importing.arrays import Array, dtype_name

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_Order = tuple[tuple[int, ...], bool, np.dtype[Any]]


def open_npy(path: Path, stack: ExitStack) -> list[Array]:
    """The array of a file, in either order and byte order."""
    file = stack.enter_context(path.open("rb"))
    shape, fortran, dtype = _header(path, file)
    start, size = file.tell(), path.stat().st_size
    wanted = math.prod(shape) * dtype.itemsize
    if size - start != wanted:
        what = (
            "it is cut short"
            if size - start < wanted
            else "it holds more than one array"
        )
        raise SourceError(
            f"{path}: {what}: {dtype} {list(shape)} takes {wanted:,} bytes, it has"
            f" {size - start:,}"
        )
    if fortran and wanted:
        mapped = np.memmap(path, dtype, "r", start, shape, order="F")
        return [
            Array(
                None,
                shape,
                dtype_name(dtype),
                lambda a, b: np.array(mapped[a:b], order="C"),
            )
        ]
    return [
        Array(None, shape, dtype_name(dtype), partial(_rows, file, start, shape, dtype))
    ]


def _header(path: Path, file: IO[bytes]) -> _Order:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise SourceError(
            f"{path}: .npy of version {version} has named fields; save a plain array"
        )
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise SourceError(
            f"{path}: it holds Python objects (a pickle, which could run code), so it"
            " was not read; save a plain array"
        )
    if dtype.kind == "V":
        raise SourceError(
            f"{path}: its dtype is {dtype.str!r}, bytes without a meaning (numpy writes"
            " bfloat16 so); save it as safetensors or float32"
        )
    return shape, fortran, dtype


def _rows(
    file: IO[bytes],
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    start: int,
    stop: int,
) -> NDArray[Any]:
    each = math.prod(shape[1:])
    file.seek(offset + start * each * dtype.itemsize)
    found: NDArray[Any] = np.fromfile(file, dtype, (stop - start) * each)
    return found.reshape(-1, *shape[1:])
