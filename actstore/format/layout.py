"""Pure arithmetic of rows, chunks, units and keys. No I/O, no state.

Row id = unit * capacity + slot. Kept rows come first in their unit, permuted by
`unit_permutation`, the same for every site.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from schemas.harvest import Layout
from schemas.manifest import HELD_OUT_EVERY

SHARD_BYTES = 128 << 20


CHUNK_BYTES = 3 << 19  # 1.5 MiB decoded: 256-row chunks nearly halved the decode rate


MIN_UNITS = 32


def plan_layout(
    n_tokens: int,
    context: int,
    widest_row_bytes: int,
    all_rows_bytes: int,
    memory: int,
    units_in_flight: int = 3,
    unit_sequences: int | None = None,
    chunk_rows: int | None = None,
) -> Layout:
    """The unit and chunk sizes of a store.

    A unit is the smallest of a 128 MiB shard (of the widest site), the memory budget
    (all sites, units in flight) and a 32nd of the tokens, so that a small store still
    has units to hold out.
    """
    n_sequences = math.ceil(n_tokens / context)
    if unit_sequences is None:
        by_shard = SHARD_BYTES // (context * widest_row_bytes)
        by_memory = memory // (units_in_flight * context * all_rows_bytes)
        unit_sequences = max(
            1, min(by_shard, by_memory, math.ceil(n_sequences / MIN_UNITS))
        )
    unit_rows = unit_sequences * context
    if chunk_rows is None:
        chunk_rows = min(
            unit_rows, 1 << max(4, (CHUNK_BYTES // widest_row_bytes).bit_length() - 1)
        )
    return Layout(
        context=context,
        n_sequences=n_sequences,
        unit_sequences=unit_sequences,
        capacity=math.ceil(unit_rows / chunk_rows) * chunk_rows,
        chunk_rows=chunk_rows,
        n_units=math.ceil(n_sequences / unit_sequences),
    )


def grown(layout: Layout, n_units: int, n_tokens: int) -> Layout:
    """The layout of a store of `n_units` units to which tokens are added."""
    n_sequences = n_units * layout.unit_sequences + math.ceil(n_tokens / layout.context)
    return layout.model_copy(
        update={
            "n_sequences": n_sequences,
            "n_units": math.ceil(n_sequences / layout.unit_sequences),
        }
    )


def held_out(unit: int) -> bool:
    """Unit k is held out for evaluation iff k mod 20 = 19."""
    return unit % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def n_chunks(n_rows: int, chunk_rows: int) -> int:
    """Chunks that hold `n_rows` rows."""
    return -(-n_rows // chunk_rows)


def unit_of(rows: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
    """Unit of each row id."""
    return rows // layout.capacity
