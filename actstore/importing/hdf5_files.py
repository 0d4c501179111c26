"""HDF5 by h5py, an optional extra."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from actstore.errors import SourceError
from actstore.importing.arrays import Array, Read, by_slabs, dtype_name


def open_hdf5(path: Path, stack: ExitStack) -> list[Array]:
    """Every dataset of a file, those in groups as `group/name`."""
    try:
        import h5py
    except ImportError as error:
        raise SourceError(
            f"{path}: HDF5 needs h5py; pip install 'actstore[hdf5]'"
        ) from error
    file = stack.enter_context(h5py.File(path, "r"))
    found: list[Array] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape:
            found.append(_dataset(path, name, node))

    file.visititems(visit)
    return found


def _dataset(path: Path, name: str, node: Any) -> Array:
    """One dataset; what is missing in it must not be read as zeros."""
    if node.is_virtual or node.external:
        raise SourceError(
            f"{path}: {name} lies in other files, which may be missing unseen; import"
            " those files"
        )
    wanted = (
        math.prod(-(-n // c) for n, c in zip(node.shape, node.chunks, strict=True))
        if node.chunks
        else 0
    )
    there = node.id.get_num_chunks() if node.chunks else 0
    if there < wanted or (node.size and not node.id.get_storage_size()):
        raise SourceError(
            f"{path}: {name} was never fully written: {there} of {wanted or 1} chunks"
            " are there"
        )
    read: Read = partial(_rows, node)
    if node.chunks:
        read = by_slabs(read, node.shape, node.chunks[0], node.dtype.itemsize)
    return Array(name, node.shape, dtype_name(node.dtype), read)


def _rows(node: Any, start: int, stop: int) -> Any:
    return node[start:stop]
