"""Layouts, in numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from actstore.format.layout import (
    CHUNK_BYTES,
    MIN_UNITS,
    SHARD_BYTES,
    grown,
    held_out,
    n_chunks,
    plan_layout,
    unit_of,
)
from schemas.harvest import Layout

MUCH = 1 << 50  # bytes of memory that bound nothing


def plan(n_tokens: int, **changes: int) -> Layout:
    given = {
        "context": 128,
        "widest_row_bytes": 1536,
        "all_rows_bytes": 12 * 1536,
        "memory": MUCH,
    }
    return plan_layout(n_tokens, **{**given, **changes})


def test_the_sizes_are_those_that_the_format_was_measured_with() -> None:
    assert SHARD_BYTES == 128 * 1024 * 1024
    assert CHUNK_BYTES == 1.5 * 1024 * 1024
    assert MIN_UNITS == 32


def test_a_shard_bounds_the_units_of_a_large_store() -> None:
    # 128 MiB / (128 tokens * 1536 bytes) = 682.7 sequences
    layout = plan(10**9)
    assert layout.unit_sequences == 682
    # 1.5 MiB / 1536 bytes = 1024 rows, which is a power of two
    assert layout.chunk_rows == 1024
    # 682 * 128 = 87,296 rows are 85.25 chunks, so 86
    assert layout.capacity == 86 * 1024
    assert layout.n_sequences == 7_812_500
    assert layout.n_units == 11_456  # 11,455.3
    assert layout.context == 128


def test_the_widest_site_bounds_the_shard_and_all_sites_the_memory() -> None:
    # three units in flight: 3 * 128 * 18,432 bytes a sequence = 7,077,888
    assert plan(10**9, memory=7_077_888 * 10).unit_sequences == 10
    assert plan(10**9, memory=7_077_888 * 10 - 1).unit_sequences == 9
    twice = plan(10**9, memory=7_077_888 * 10, units_in_flight=6)
    assert twice.unit_sequences == 5
    assert plan(10**9, memory=1).unit_sequences == 1


def test_a_small_store_still_has_units_to_hold_out() -> None:
    # 1,000,000 / 128 = 7,812.5 sequences; a 32nd is 244.2
    layout = plan(1_000_000)
    assert layout.n_sequences == 7813
    assert layout.unit_sequences == 245
    assert layout.n_units == 32
    assert plan(1).n_sequences == 1
    assert plan(129).n_sequences == 2


def test_a_chunk_is_no_larger_than_its_unit() -> None:
    layout = plan(128 * 3, unit_sequences=2)
    assert layout.unit_sequences == 2
    assert layout.chunk_rows == layout.capacity == 256
    assert layout.n_units == 2


@pytest.mark.parametrize(
    ("row_bytes", "rows"),
    # just above half a chunk a row: 1 would fit, and 16 is the least
    [(1536, 1024), (1537, 512), (3072, 512), (768, 2048), (10**6, 16), (10**9, 16)],
)
def test_chunks_are_powers_of_two_rows(row_bytes: int, rows: int) -> None:
    layout = plan(10**6, unit_sequences=64, widest_row_bytes=row_bytes)
    assert layout.chunk_rows == rows


def test_sizes_that_are_given_are_taken() -> None:
    layout = plan(1000, unit_sequences=3, chunk_rows=100, context=50)
    assert layout == Layout(
        context=50,
        n_sequences=20,
        unit_sequences=3,
        capacity=200,  # 150 rows are 1.5 chunks
        chunk_rows=100,
        n_units=7,
    )


def test_tokens_that_are_added_begin_in_a_unit_of_their_own() -> None:
    layout = plan(1000, unit_sequences=3, chunk_rows=100, context=50)
    # 7 units own 21 sequences, of which the last is a hole; 101 tokens are 3 more
    larger = grown(layout, 7, 101)
    assert larger.n_sequences == 24
    assert larger.n_units == 8
    assert grown(layout, 7, 151).n_units == 9
    unchanged = {"n_sequences", "n_units"}
    assert larger.model_dump(exclude=unchanged) == layout.model_dump(exclude=unchanged)


def test_every_twentieth_unit_is_held_out() -> None:
    assert [unit for unit in range(61) if held_out(unit)] == [19, 39, 59]


def test_rows_fill_chunks_and_belong_to_units() -> None:
    assert [n_chunks(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    layout = plan(1000, unit_sequences=3, chunk_rows=100, context=50)
    assert unit_of(np.array([0, 199, 200, 401]), layout).tolist() == [0, 0, 1, 2]
