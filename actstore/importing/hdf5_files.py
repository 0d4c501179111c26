"""HDF5 by h5py, an optional extra."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actstore.errors import SourceError
from actstore.importing.source_arrays import SourceArray, array_in_chunks


def open_hdf5(path: Path, stack: ExitStack) -> list[SourceArray]:
    """Return every dataset of a file, those in groups as `group/name`.

    Raises:
        SourceError: h5py is not installed, or a dataset is not wholly in the file.
    """
    try:
        import h5py
    except ImportError as error:
        raise SourceError(
            f"{path}: HDF5 needs h5py; pip install 'actstore[hdf5]'"
        ) from error
    file = stack.enter_context(h5py.File(path, "r"))
    arrays: list[SourceArray] = []

    def visit(name: str, node: Any) -> None:
        # Groups are passed over, and scalars: their shape is () and has no rows.
        if isinstance(node, h5py.Dataset) and node.shape:
            _check_is_whole(path, name, node)
            arrays.append(array_in_chunks(name, node))

    file.visititems(visit)
    return arrays


def _check_is_whole(path: Path, name: str, node: Any) -> None:
    """Refuse a dataset of which a part is missing: HDF5 would read zeros there."""
    if node.is_virtual or node.external:
        raise SourceError(
            f"{path}: {name} lies in other files, which may be missing unseen; import"
            " those files"
        )
    n_wanted = 0
    n_stored = 0
    if node.chunks:
        chunks_per_axis = [
            math.ceil(length / chunk)
            for length, chunk in zip(node.shape, node.chunks, strict=True)
        ]
        n_wanted = math.prod(chunks_per_axis)
        n_stored = node.id.get_num_chunks()
    # Without chunks there is one block, which is there or is not.
    never_stored = node.size and not node.id.get_storage_size()
    if n_stored < n_wanted or never_stored:
        raise SourceError(
            f"{path}: {name} was never fully written: {n_stored} of {n_wanted or 1}"
            " chunks are there"
        )
