"""Ranges of a shard are joined into fewer requests, and none is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.store.shard_bytes import (
    MOST_MOVED,
    REQUEST_BYTES,
    StoredShards,
    joined_ranges,
)

SHARD = bytes(range(256)) * 40


def covered(ranges: Sequence[tuple[int, int]]) -> int:
    """Bytes that lie in any of the ranges."""
    return len({byte for first, n in ranges for byte in range(first, first + n)})


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=20))
def test_every_range_is_read_once_and_few_bytes_more(
    ranges: list[tuple[int, int]],
) -> None:
    joined = joined_ranges(ranges)
    members = [position for one in joined for position in one.members]
    assert sorted(members) == list(range(len(ranges)))
    for one in joined:
        inside = [ranges[position] for position in one.members]
        assert all(
            one.offset <= first and first + n <= one.offset + one.length
            for first, n in inside
        )
        if len(inside) > 1:
            assert one.length < MOST_MOVED * covered(inside)
        # it begins and ends with bytes that are wanted
        assert one.offset == min(first for first, _ in inside)
        assert one.offset + one.length == max(first + n for first, n in inside)


def test_the_example_of_the_page() -> None:
    assert len(joined_ranges([(0, 10), (10, 10), (24, 10)])) == 1
    assert len(joined_ranges([(0, 10), (24, 10)])) == 2
    # exactly 1.25 times is too many
    assert len(joined_ranges([(0, 10), (15, 10)])) == 1 + 1
    assert joined_ranges([]) == []


def test_requests_have_a_largest_size() -> None:
    chunk = REQUEST_BYTES // 4
    joined = joined_ranges([(i * chunk, chunk) for i in range(10)])
    assert [len(one.members) for one in joined] == [4, 4, 2]
    assert len(joined_ranges([(0, 3 * REQUEST_BYTES)])) == 1


class OneShard:
    """A storage that holds one shard."""

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        assert key == "acts/a/c/3/0"
        return [SHARD[first:][:n] for first, n in ranges]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, len(SHARD) + 50), st.integers(1, 60)),
            st.integers(1, 50).map(lambda n: (-n, n)),
        ),
        max_size=20,
    )
)
def test_parts_are_those_asked_for(ranges: list[tuple[int, int]]) -> None:
    """Also from the end, and where the shard ends before."""
    shards = StoredShards(cast("Any", OneShard()))
    assert shards.read("a", 3, ranges) == [SHARD[first:][:n] for first, n in ranges]
