"""Measures how small a codec makes real rows, and how fast it is on this machine."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.format.object_records import object_record
from actstore.format.permutation import unit_permutation
from actstore.format.shard import ShardCodec
from actstore.format.stored_dtypes import encode_int8, numpy_dtype, to_float32
from actstore.harvesting.sealed_unit import SealedUnit
from schemas.harvest import Codec, HarvestSpec, Layout


class CodecTiming(NamedTuple):
    """The bytes and seconds of encoding and decoding some rows, on all cores.

    Attributes:
        raw_bytes: Bytes of the rows in the storage dtype.
        stored_bytes: Bytes of their encoded chunks.
        encode_s: Seconds that encoding and digesting took.
        decode_s: Seconds that decoding took.
    """

    raw_bytes: int
    stored_bytes: int
    encode_s: float
    decode_s: float


def time_codec(
    codec: Codec, spec: HarvestSpec, layout: Layout, rows: SealedUnit
) -> CodecTiming:
    """Encode and decode the rows of every site, as a harvest and its readers do."""
    n_rows = len(rows.rows)
    chunk_rows = min(layout.chunk_rows, max(1, n_rows))
    n_chunks = n_rows // chunk_rows
    # Whole chunks only: a last one would be filled up with zeros, which compress well
    # and would make the codec look better than it is.
    order = unit_permutation(spec.seed, 0, n_rows)[: n_chunks * chunk_rows]
    sites: list[CodecTiming] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for values in rows.values.values():
            stored = values
            if spec.dtype == "int8":
                stored = encode_int8(to_float32(values)).values
            shard = ShardCodec(
                codec, numpy_dtype(spec.dtype), chunk_rows, stored.shape[1], n_chunks
            )
            sites.append(_time_site(shard, stored, order, pool))
    return CodecTiming(
        raw_bytes=sum(site.raw_bytes for site in sites),
        stored_bytes=sum(site.stored_bytes for site in sites),
        encode_s=sum(site.encode_s for site in sites),
        decode_s=sum(site.decode_s for site in sites),
    )


def _time_site(
    shard: ShardCodec,
    values: NDArray[Any],
    order: NDArray[np.int64],
    pool: ThreadPoolExecutor,
) -> CodecTiming:
    """Encode one site's values [n, d] in the order of their slots, and decode them."""
    began = time.perf_counter()
    parts = shard.encode(values, order, pool)
    object_record(parts)
    encode_s = time.perf_counter() - began
    # Each chunk is two parts, its bytes and their checksum. The last part of all is the
    # shard's index.
    chunks = [
        chunk + checksum
        for chunk, checksum in zip(parts[:-1:2], parts[1:-1:2], strict=True)
    ]
    chunk_shape = (shard.chunk_rows, shard.d)
    decoded = [np.empty(chunk_shape, shard.dtype) for _ in chunks]
    began = time.perf_counter()
    # A list waits for all of them.
    list(pool.map(shard.decode_chunk, chunks, decoded))
    decode_s = time.perf_counter() - began
    return CodecTiming(
        raw_bytes=sum(chunk.nbytes for chunk in decoded),
        stored_bytes=sum(len(chunk) for chunk in chunks),
        encode_s=encode_s,
        decode_s=decode_s,
    )
