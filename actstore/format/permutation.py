"""Permutations that depend on a key alone, and on no library's random generator.

Pure arithmetic: no I/O, no state. What is written with a permutation must be read with
the same one years later, so none of these may ever change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: splitmix64's step
_FACTOR_1 = 0xBF58476D1CE4E5B9
_FACTOR_2 = 0x94D049BB133111EB
_ROUNDS = 6

# The stage that a key names after the seed, so that no two uses of a seed agree.
UNIT_STAGE = 1


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the images of 64-bit words, uint64 [n], under a fixed bijection.

    It spreads each bit over all of them: the finaliser of splitmix64 (Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators").
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FACTOR_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_FACTOR_2)
    return x ^ (x >> np.uint64(31))


def key64(*parts: int) -> np.uint64:
    """Return one 64-bit key made from several integers.

    Their order counts, and they are not just added up:

    key64(1, 2) is 8314919509031096729, and key64(2, 1) is 14213818213312549279.
    """
    state = 0
    for part in parts:
        mixed_part = _mix(part & _WORD)
        state = _mix((state + _GOLDEN + mixed_part) & _WORD)
    return np.uint64(state)


def _mix(x: int) -> int:
    """Return `mix64` of one word: thirty times faster than for an array of one."""
    x = (x ^ (x >> 30)) * _FACTOR_1 & _WORD
    x = (x ^ (x >> 27)) * _FACTOR_2 & _WORD
    return x ^ (x >> 31)


def permutation(n: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of range(n), int64 [n], that depends on `key` only.

    Indices are sorted by a 64-bit draw each, whose low bits are replaced by the index
    itself, so that there are no ties and one sort does it.
    """
    # permutation(5, 0): indices below 5 take 3 bits. With those replaced, the draws are
    #     0: 48..b8   1: a7..69   2: b3..5a   3: 63..13   4: a8..04
    # Sorted they are 48.., 63.., a7.., a8.., b3..; their low bits are 0, 3, 1, 4, 2.
    index = np.arange(n, dtype=np.uint64)
    index_bits = max(1, (n - 1).bit_length())
    low = np.uint64((1 << index_bits) - 1)
    # Products and sums of uint64 arrays are modulo 2^64, as they are meant here.
    draws = mix64(index * np.uint64(_GOLDEN) + key64(*key))
    with_index = (draws & ~low) | index
    return (np.sort(with_index) & low).astype(np.int64)


def bijection(index: NDArray[np.int64], n: int, *key: int) -> NDArray[np.int64]:
    """Return where a keyed permutation of range(n) takes some indices, int64 [any].

    The rest of the permutation is never worked out.

    A balanced Feistel network of 6 rounds permutes the numbers below the next even
    power of two; what lands at n or above goes through it again until it is below n
    (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    # n = 5 takes 3 bits; in two halves of 2 bits, the network permutes 0 to 15. With
    # the key 0 it takes 4 to 7, 7 to 13, 13 to 14 and 14 to 4: so 4 is its own image.
    # It takes 0 to 10 and 10 to 1: the image of 0 is 1. That every number below n has
    # another image follows from the network being a permutation.
    index_bits = (n - 1).bit_length()
    half_bits = max(1, (index_bits + 1) // 2)
    half = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    round_keys = [key64(*key, i) for i in range(_ROUNDS)]
    x = index.astype(np.uint64)
    todo = np.ones(len(x), bool)
    while todo.any():
        left = x[todo] >> half
        right = x[todo] & mask
        for round_key in round_keys:
            mixed = left ^ (mix64(right + round_key) & mask)
            left = right
            right = mixed
        x[todo] = (left << half) | right
        todo[todo] = x[todo] >= n
    return x.astype(np.int64)


def unit_permutation(
    seed: int,
    unit: int,
    n_rows: int,
) -> NDArray[np.int64]:
    """Return the order of a unit's rows, int64 [n_rows], the same for every site.

    Slot i holds the row that is number `order[i]` by (sequence, position).
    """
    return permutation(n_rows, seed, UNIT_STAGE, unit)
