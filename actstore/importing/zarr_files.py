"""Zarr, format 2 or 3, by zarr-python: an array, or a group of arrays."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from actstore.errors import SourceError
from actstore.format import keys
from actstore.importing.arrays import Array, Read, by_slabs, dtype_name

MARKS = ("zarr.json", ".zarray", ".zgroup")


def open_zarr(path: Path, stack: ExitStack) -> list[Array]:  # noqa: ARG001 (nothing stays open)
    """The array that a folder is, or all arrays below it as `group/name`."""
    import zarr

    import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

    if (path / keys.plan_key()).exists() and (path / "acts").exists():
        raise SourceError(
            f"{path}: this is a store of actstore's already; use it as it is"
        )
    node: Any = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        return [_array(path, None, node)]
    arrays = (
        (name, one)
        for name, one in node.members(max_depth=None)
        if isinstance(one, zarr.Array)
    )
    return [
        _array(path, name, one)
        for name, one in sorted(arrays, key=lambda pair: pair[0])
    ]


def _array(path: Path, name: str | None, node: Any) -> Array:
    """One array; a chunk that is missing would be read as the fill value, so it has to
    be there.
    """
    read: Read = partial(_rows, node)
    if node.shape and node.nchunks_initialized < node.nchunks:
        read = partial(_incomplete, path, name, node)
    if node.chunks:
        read = by_slabs(read, node.shape, node.chunks[0], node.dtype.itemsize)
    return Array(name, node.shape, dtype_name(node.dtype), read)


def _rows(node: Any, start: int, stop: int) -> Any:
    return node[start:stop]


def _incomplete(path: Path, name: str | None, node: Any, start: int, stop: int) -> Any:
    raise SourceError(
        f"{path}: {name or 'the array'} has {node.nchunks_initialized} of"
        f" {node.nchunks} chunks; rows {start}..{stop} may be missing and would be read"
        " as fill values. Copy the rest too (or, if they are all 0, write them:"
        " `write_empty_chunks`)"
    )
