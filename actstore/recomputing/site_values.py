"""Reads a site's values in a unit, chunk by chunk, with how coarse they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.layout import n_chunks
from actstore.format.stored_dtypes import Int8Rows, decode_int8, to_float32
from actstore.recomputing.allowances import Floats, Quantised
from actstore.store.chunk_reader import ChunkReader
from actstore.store.store import Store


class ChunkValues(NamedTuple):
    """The rows in one chunk of a site's shard.

    Attributes:
        slots: Their slots.
        values: The rows as a reader gets them, float64 [n, d].
        quantised: How coarse they are; None but in an int8 store.
        filled_up: Whether what follows the last row in the chunk is zeros.
    """

    slots: slice
    values: Floats
    quantised: Quantised | None
    filled_up: bool


def read_chunks(store: Store, site: str, unit: int) -> Iterator[ChunkValues]:
    """Yield the chunks of a site in a unit that have rows, in order.

    Raises:
        CorruptError: One cannot be decoded.
    """
    reader = ChunkReader(store, (site,))
    codec = reader.codecs[0]
    n_rows = store.rows_in(unit)
    stored = np.empty((0, codec.d), codec.dtype)
    for chunk in range(n_chunks(n_rows, codec.chunk_rows)):
        if not len(stored):
            # `read_slots` takes memory once a chunk has shown that it is there.
            _ = reader.read_slots(0, unit, np.zeros(1, np.int64))
            stored = np.empty((codec.chunk_rows, codec.d), codec.dtype)
        reader.read(0, unit, chunk, stored)
        start = chunk * codec.chunk_rows
        stop = min(start + codec.chunk_rows, n_rows)
        rows = stored[: stop - start]
        rest = stored[stop - start :]
        quantised = None
        if codec.dtype == np.int8:
            scale, step = reader.int8_parts(0, unit, chunk)
            scale = scale[: stop - start]
            values = decode_int8(Int8Rows(rows, scale, step)).astype(np.float64)
            quantised = as_quantised(scale, step)
        else:
            values = to_float32(rows).astype(np.float64)
        filled_up = not rest.view(np.uint8).any()
        yield ChunkValues(slice(start, stop), values, quantised, filled_up)


def as_quantised(scale: NDArray[np.float16], step: NDArray[np.float32]) -> Quantised:
    """Return how coarse int8 rows are.

    Args:
        scale: Scale of each row, float16 [n].
        step: Mean and step of each channel, float32 [2, d].
    """
    wide = step.astype(np.float64)
    return Quantised(scale.astype(np.float64), wide[0], wide[1])
