"""Permutations that depend on a key alone, and on no library's random generator. No
I/O, no state.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64 - 1


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
    """A permutation of range(n) that depends on `key` only, and on no library's random
    generator.

    Indices are sorted by a 64-bit draw each, whose low bits are replaced by the index
    itself: no ties, one sort.
    """
    index = np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << max(1, (n - 1).bit_length())) - 1)
    with np.errstate(over="ignore"):
        draws = mix64(index * np.uint64(0x9E3779B97F4A7C15) + key64(*key))
    return (np.sort((draws & ~low) | index) & low).astype(np.int64)


def bijection(index: NDArray[np.int64], n: int, *key: int) -> NDArray[np.int64]:
    """The images of some indices under a keyed bijection of range(n), without
    materialising it.

    A balanced Feistel network of 6 rounds over the next even power of two, walked until
    it lands below n.
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
    """Slot i of the unit holds the token that is number `perm[i]` in (sequence,
    position) order.
    """
    return permutation(n_rows, seed, UNIT_STAGE, unit)
