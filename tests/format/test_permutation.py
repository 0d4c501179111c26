"""Permutations, held to other people's numbers and to plain Python integers.

Every store's bytes and every stream's order follow from these functions, so they are
compared with values that were written down, not only with themselves.
"""

from __future__ import annotations

import numpy as np
import pytest

from actstore.format.permutation import (
    bijection,
    key64,
    mix64,
    permutation,
    unit_permutation,
)

WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15

# The first outputs of splitmix64 from the seed 1234567, as its authors publish them.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def key_of(*parts: int) -> int:
    state = 0
    for part in parts:
        state = mixed((state + GOLDEN + mixed(part & WORD)) & WORD)
    return state


def permuted(n: int, *key: int) -> list[int]:
    """Indices sorted by a draw whose low bits are the index."""
    low = (1 << max(1, (n - 1).bit_length())) - 1
    draws = [mixed((i * GOLDEN + key_of(*key)) & WORD) for i in range(n)]
    return [draw & low for draw in sorted(d & ~low | i for i, d in enumerate(draws))]


def image(x: int, n: int, *key: int) -> int:
    """Six rounds of a Feistel network, walked until it lands below n."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = x >> half, x & mask
        for i in range(6):
            mix = mixed((right + key_of(*key, i)) & WORD)
            left, right = right, left ^ (mix & mask)
        x = left << half | right
        if x < n:
            return x


def test_mix64_is_the_finaliser_of_splitmix64() -> None:
    states = [(1234567 + GOLDEN * (i + 1)) & WORD for i in range(5)]
    assert mix64(np.array(states, np.uint64)).tolist() == PUBLISHED


@pytest.mark.parametrize(
    "parts", [(), (0,), (1,), (0, 0), (1, 2), (2, 1), (-1,), (2**64 - 1, 5)]
)
def test_a_key_is_one_word_of_all_parts_in_their_order(parts: tuple[int, ...]) -> None:
    key = key64(*parts)
    assert isinstance(key, np.uint64)
    assert int(key) == key_of(*parts)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 100])
def test_permutations_are_those_of_the_definition(n: int) -> None:
    got = permutation(n, 7, 3)
    assert got.dtype == np.int64
    assert got.tolist() == permuted(n, 7, 3)


def test_no_more_of_a_draw_is_replaced_than_the_index_needs() -> None:
    """With this key two of 2^20 draws are alike in all bits but the lowest 21, so that
    the 21st decides which of them comes first.
    """
    n, key = 1 << 20, 42
    index = np.arange(n, dtype=np.uint64)
    draws = mix64(index * np.uint64(GOLDEN) + np.uint64(key_of(key)))
    high = draws >> np.uint64(20)
    assert len(np.unique(high >> np.uint64(1))) == n - 1
    wanted = np.argsort(high, kind="stable")
    np.testing.assert_array_equal(permutation(n, key), wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 64, 65, 100])
def test_bijections_are_those_of_the_definition(n: int) -> None:
    given = np.arange(n)
    got = bijection(given, n, 7, 3)
    assert got.dtype == np.int64
    assert got.tolist() == [image(x, n, 7, 3) for x in range(n)]
    assert sorted(got) == list(range(n))
    assert given.tolist() == list(range(n))  # what was given stays as it was


def test_some_images_are_those_among_all_of_them() -> None:
    some = np.array([41, 3, 3, 0])
    every = bijection(np.arange(50), 50, 9)
    assert bijection(some, 50, 9).tolist() == every[some].tolist()
    assert bijection(some[:0], 50, 9).tolist() == []


def test_a_unit_has_a_permutation_of_its_own() -> None:
    assert unit_permutation(5, 2, 40).tolist() == permuted(40, 5, 1, 2)
