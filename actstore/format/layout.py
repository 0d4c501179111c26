"""The sizes of units and chunks, and which unit a row is in.

Pure arithmetic: no I/O, no state.

Row id = unit * capacity + slot. Kept rows come first in their unit, in the order of
`permutation.unit_permutation`, which is the same for every site.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from schemas.harvest import Layout
from schemas.manifest import HELD_OUT_EVERY

SHARD_BYTES = 128 << 20
# The most that a decoded chunk has: 1.5 MiB are 1,024 rows of 768 bfloat16 values. With
# chunks of 256 rows the decode rate was nearly halved.
CHUNK_BYTES = 3 << 19
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
    """Return the unit and chunk sizes of a store.

    A unit is the smallest of a 128 MiB shard (of the widest site), the memory budget
    (all sites, units in flight) and a 32nd of the tokens, so that a small store still
    has units to hold out.

    Args:
        n_tokens: Tokens to harvest.
        context: Tokens of a sequence.
        widest_row_bytes: Bytes of a row of the widest site, as stored.
        all_rows_bytes: Bytes of the rows of all sites for one token.
        memory: Bytes that units in memory may take together.
        units_in_flight: Units that are in memory at a time.
        unit_sequences: Sequences of a unit, where the user has chosen them.
        chunk_rows: Rows of a chunk, where the user has chosen them.
    """
    # 1,000,000 tokens in contexts of 128 are 7,813 sequences. With one site of 768
    # bfloat16 values a row has 1,536 bytes: a shard of 128 MiB has room for 682
    # sequences, 1 GiB for three units of 1,820 each, and a 32nd of the tokens is 245:
    # a unit has 245 sequences or 31,360 rows, in 31 chunks of 1,024 rows.
    n_sequences = math.ceil(n_tokens / context)
    if unit_sequences is None:
        by_shard = SHARD_BYTES // (context * widest_row_bytes)
        by_memory = memory // (units_in_flight * context * all_rows_bytes)
        by_tokens = math.ceil(n_sequences / MIN_UNITS)
        unit_sequences = max(1, min(by_shard, by_memory, by_tokens))
    unit_rows = unit_sequences * context
    if chunk_rows is None:
        exact = CHUNK_BYTES // widest_row_bytes
        power_of_two = 1 << max(4, exact.bit_length() - 1)
        chunk_rows = min(unit_rows, power_of_two)
    return Layout(
        context=context,
        n_sequences=n_sequences,
        unit_sequences=unit_sequences,
        capacity=n_chunks(unit_rows, chunk_rows) * chunk_rows,
        chunk_rows=chunk_rows,
        n_units=math.ceil(n_sequences / unit_sequences),
    )


def grown(layout: Layout, n_units: int, n_tokens: int) -> Layout:
    """Return the layout of a store of `n_units` units to which tokens are added."""
    n_sequences = n_units * layout.unit_sequences + math.ceil(n_tokens / layout.context)
    return layout.model_copy(
        update={
            "n_sequences": n_sequences,
            "n_units": math.ceil(n_sequences / layout.unit_sequences),
        }
    )


def held_out(unit: int) -> bool:
    """Return whether a unit is held out for evaluation: units 19, 39, 59, ... are."""
    return unit % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def n_chunks(n_rows: int, chunk_rows: int) -> int:
    """Return how many chunks hold `n_rows` rows."""
    return -(-n_rows // chunk_rows)


def unit_of(rows: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
    """Return the unit of each row id, int64 [n]."""
    return rows // layout.capacity
