"""Pure arithmetic of rows, chunks, units and keys. No I/O, no state.

Row id = unit * capacity + slot. Kept rows come first in their unit, permuted by `unit_permutation`, the same
for every site.
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

_WORD = 2**64 - 1
PLAN, MANIFEST = "plan.json", "manifest.json"


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

    A unit is the smallest of a 128 MiB shard (of the widest site), the memory budget (all sites, units in flight)
    and a 32nd of the tokens, so that a small store still has units to hold out.
    """
    n_sequences = math.ceil(n_tokens / context)
    if unit_sequences is None:
        by_shard = SHARD_BYTES // (context * widest_row_bytes)
        by_memory = memory // (units_in_flight * context * all_rows_bytes)
        unit_sequences = max(1, min(by_shard, by_memory, math.ceil(n_sequences / MIN_UNITS)))
    unit_rows = unit_sequences * context
    if chunk_rows is None:
        chunk_rows = min(unit_rows, 1 << max(4, (CHUNK_BYTES // widest_row_bytes).bit_length() - 1))
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
        update={"n_sequences": n_sequences, "n_units": math.ceil(n_sequences / layout.unit_sequences)}
    )


def held_out(unit: int) -> bool:
    """Unit k is held out for evaluation iff k mod 20 = 19."""
    return unit % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def n_chunks(n_rows: int, chunk_rows: int) -> int:
    """Chunks that hold `n_rows` rows."""
    return -(-n_rows // chunk_rows)


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection on 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key64(*parts: int) -> np.uint64:
    """One 64-bit key from several integers, order-sensitive; never by addition alone."""
    state = 0
    for part in parts:
        state = _mix(state + 0x9E3779B97F4A7C15 + _mix(part & _WORD) & _WORD)
    return np.uint64(state)


def _mix(x: int) -> int:
    """`mix64` of one word: thirty times faster than an array of one."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


def permutation(n: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(n) that depends on `key` only, and on no library's random generator.

    Indices are sorted by a 64-bit draw each, whose low bits are replaced by the index itself: no ties, one sort.
    """
    index = np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << max(1, (n - 1).bit_length())) - 1)
    with np.errstate(over="ignore"):
        draws = mix64(index * np.uint64(0x9E3779B97F4A7C15) + key64(*key))
    return (np.sort((draws & ~low) | index) & low).astype(np.int64)


def bijection(index: NDArray[np.int64], n: int, *key: int) -> NDArray[np.int64]:
    """The images of some indices under a keyed bijection of range(n), without materialising it.

    A balanced Feistel network of 6 rounds over the next even power of two, walked until it lands below n.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    rounds = [key64(*key, i) for i in range(6)]
    x = index.astype(np.uint64)
    todo = np.ones(len(x), bool)
    while todo.any():
        left, right = x[todo] >> half, x[todo] & mask
        with np.errstate(over="ignore"):
            for k in rounds:
                left, right = right, left ^ (mix64(right + k) & mask)
        x[todo] = (left << half) | right
        todo[todo] = x[todo] >= n
    return x.astype(np.int64)


UNIT_STAGE = 1


def unit_permutation(seed: int, unit: int, n_rows: int) -> NDArray[np.int64]:
    """Slot i of the unit holds the token that is number `perm[i]` in (sequence, position) order."""
    return permutation(n_rows, seed, UNIT_STAGE, unit)


def unit_of(rows: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
    """Unit of each row id."""
    return rows // layout.capacity


def acts_key(site: str) -> str:
    return f"acts/{site}"


def norm_key(site: str) -> str:
    return f"norm/{site}"


def scale_key(site: str) -> str:
    return f"scale/{site}"


def step_key(site: str) -> str:
    return f"step/{site}"


def chunk_key(array: str, *index: int) -> str:
    """Key of a chunk (for a sharded array: of a shard) in Zarr's default v3 encoding."""
    return "/".join([array, "c", *map(str, index)])


def plan_key(generation: int = 0) -> str:
    return _of_generation("plan", generation) + ".json"


def units_prefix(generation: int = 0) -> str:
    return _of_generation("units", generation)


def unit_key(unit: int, generation: int = 0) -> str:
    return f"{units_prefix(generation)}/{unit:05d}.json"


def unit_stats_key(unit: int, generation: int = 0) -> str:
    return f"{units_prefix(generation)}/{unit:05d}.stats"


def columns_prefix(generation: int = 0) -> str:
    return _of_generation("columns", generation)


def merged_stats_key(generation: int = 0) -> str:
    return _of_generation("norms", generation) + ".stats"


def block_key(unit: int) -> str:
    return f"blocks/{unit:05d}.json"


def claim_key(unit: int) -> str:
    return f"claims/{unit:05d}.json"


def _of_generation(name: str, generation: int) -> str:
    """Generation 0 has the plain names; later ones never touch an object that an open reader may use."""
    return f"{name}-{generation}" if generation else name
