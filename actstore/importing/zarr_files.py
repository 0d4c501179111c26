"""Zarr, format 2 or 3, by zarr-python: an array, or a group of arrays."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actstore.errors import SourceError
from actstore.format import object_keys
from actstore.importing.source_arrays import Read, SourceArray, array_in_chunks

MARKS = ("zarr.json", ".zarray", ".zgroup")  # files that only a Zarr folder holds


def open_zarr(path: Path, stack: ExitStack) -> list[SourceArray]:  # noqa: ARG001 (nothing stays open)
    """Return the array that a folder is, or all arrays below it as `group/name`.

    Raises:
        SourceError: The folder is a store of actstore's.
    """
    import zarr

    import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

    # Read as plain arrays, its rows would lose their tokens, norms and digests.
    if (path / object_keys.plan_key()).exists() and (path / "acts").exists():
        raise SourceError(
            f"{path}: this is a store of actstore's already; use it as it is"
        )
    node: Any = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        return [_array(path, None, node)]
    members = dict(node.members(max_depth=None))
    return [
        _array(path, name, members[name])
        for name in sorted(members)
        if isinstance(members[name], zarr.Array)
    ]


def _array(path: Path, name: str | None, node: Any) -> SourceArray:
    """Return one array.

    Zarr would read a missing chunk as its fill value, so an array with missing ones is
    listed but cannot be read.
    """
    read: Read | None = None
    if node.shape and node.nchunks_initialized < node.nchunks:
        read = _refuses_to_read(path, name, node)
    return array_in_chunks(name, node, read)


def _refuses_to_read(path: Path, name: str | None, node: Any) -> Read:
    def read(start: int, stop: int) -> Any:
        raise SourceError(
            f"{path}: {name or 'the array'} has {node.nchunks_initialized} of"
            f" {node.nchunks} chunks; rows {start}..{stop} may be missing and would be"
            " read as fill values. Copy the rest too (or, if they are all 0, write"
            " them: `write_empty_chunks`)"
        )

    return read
