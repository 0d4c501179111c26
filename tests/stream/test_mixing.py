from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from actstore.errors import SpecError
from actstore.format.permutation import unit_permutation
from actstore.stream.group_cells import default_group_units
from actstore.stream.mixing import TARGET, Mix, mixing_shortfall, window_chunks
from actstore.stream.order import Order
from actstore.stream.unit_source import FinishedUnits
from actstore.stream.window_plan import windows_of_epoch
from schemas.harvest import Layout
from schemas.stream import StreamSpec

BATCH = 1024


def make(context: int, size: int, n_units: int, chunk_rows: int) -> Layout:
    return Layout(
        context=context,
        n_sequences=n_units * size,
        unit_sequences=size,
        capacity=size * context,
        chunk_rows=chunk_rows,
        n_units=n_units,
    )


def measured(
    layout: Layout, n_sites: int, chunks: int, n_windows: int
) -> tuple[float, float]:
    """(mean, standard error) of the share of distinct sequences that batches fall short
    of an i.i.d. draw's.
    """
    order = Order(
        layout=layout,
        columns=tuple(range(n_sites)),
        window_chunks=chunks,
        lanes=8,
        seed=1,
    )
    units = FinishedUnits(
        np.arange(layout.n_units),
        np.full(layout.n_units, layout.capacity),
        seed=1,
        group_units=default_group_units(layout),
    )
    of_unit = [
        unit_permutation(0, u, layout.capacity) // layout.context
        for u in range(layout.n_units)
    ]
    sequence = np.concatenate(
        [own + u * layout.unit_sequences for u, own in enumerate(of_unit)]
    )
    windows = islice(windows_of_epoch(order, units, epoch=0), n_windows)
    elements = np.concatenate([sequence[window.row.reshape(-1)] for window in windows])
    batches = elements[: len(elements) // BATCH * BATCH].reshape(-1, BATCH)
    distinct = np.array([len(np.unique(batch)) for batch in batches])
    n = layout.n_sequences
    short = 1 - distinct / (n * (1 - (1 - 1 / n) ** BATCH))
    return short.mean(), short.std() / np.sqrt(len(short))


@pytest.mark.parametrize("n_sites", [1, 3])
@pytest.mark.parametrize(
    ("context", "size", "chunk_rows"), [(128, 64, 512), (1024, 16, 512)]
)
@pytest.mark.parametrize("chunks", [8, 32])
def test_the_shortfall_is_as_derived(
    n_sites: int, context: int, size: int, chunk_rows: int, chunks: int
) -> None:
    layout = make(context, size, 200, chunk_rows)
    expected = mixing_shortfall(Mix(layout, 200, (1,) * n_sites), chunks, BATCH)
    mean, error = measured(layout, n_sites, chunks, 24)
    # second-order terms of the derivation, and that windows differ in what they happen
    # to hold
    assert mean == pytest.approx(expected, abs=4 * error + 0.12 * expected + 0.004)
    assert expected <= BATCH / (2 * chunks * size)


@pytest.mark.parametrize(("context", "size"), [(128, 640), (1024, 80)])
def test_default_windows_mix_within_five_percent(context: int, size: int) -> None:
    layout, spec = make(context, size, 100, 1024), StreamSpec(batch=BATCH)
    chunks = window_chunks(Mix(layout, 100, (1,) * 12), 12 * (3 << 19), spec)
    assert mixing_shortfall(Mix(layout, 100, (1,) * 12), chunks, BATCH) <= TARGET
    mean, error = measured(layout, 12, chunks, 3)
    assert mean <= 0.05 - 2 * error


def test_a_window_is_no_larger_than_the_memory_or_the_store() -> None:
    mix = Mix(make(128, 4, 30, 256), 30, (1, 1))
    chosen = window_chunks(mix, 2 << 20, StreamSpec())
    assert chosen <= 64  # of 60 chunks
    assert (
        mixing_shortfall(mix, chosen, 4096)
        <= TARGET
        < mixing_shortfall(mix, chosen - 8, 4096)
    )
    assert window_chunks(mix, 2 << 20, StreamSpec(memory=100 << 20)) == 24
    assert window_chunks(mix, 2 << 20, StreamSpec(window_chunks=9)) == 16
    with pytest.raises(SpecError, match="raise it, or lower `lanes`"):
        window_chunks(mix, 2 << 20, StreamSpec(memory=1 << 20))


def by_hand(mix: Mix, chunks: int, batch: int) -> float:
    """The formula of `mixing.py`'s docstring, from shares and not from copies."""
    layout = mix.layout
    size, per_unit = layout.unit_sequences, layout.unit_chunks
    in_group = mix.group * per_unit
    same_site, other_sites = 0.0, 1.0
    for copies in mix.copies:
        share = copies / sum(mix.copies)
        window = min(copies * chunks, in_group)
        elsewhere = (per_unit - 1) / (in_group - 1) if in_group > 1 else 0.0
        same_site += share**2 * (1 / window + (1 - 1 / window) * elsewhere)
        other_sites -= share**2
    p = (same_site + other_sites / mix.group) / size
    n = mix.n_units * size

    def distinct(m: float) -> float:
        return m * (1 - np.exp(-batch / m))

    return 1 - distinct(1 / p) / distinct(n)


@pytest.mark.parametrize("copies", [(1,), (1, 1, 1), (1, 2), (5,)])
@pytest.mark.parametrize("group", [None, 1, 7])
@pytest.mark.parametrize("chunks", [8, 32])
def test_the_shortfall_is_that_of_the_formula(
    copies: tuple[int, ...], group: int | None, chunks: int
) -> None:
    mix = Mix(make(128, 64, 50, 512), 50, copies)
    assert mix.group == 50
    if group is not None:
        mix = mix._replace(group_units=group)
        assert mix.group == group
    wanted = by_hand(mix, chunks, BATCH)
    assert 0 < wanted < 1
    assert mixing_shortfall(mix, chunks, BATCH) == pytest.approx(wanted, rel=1e-9)


def test_the_shortfall_of_windows_that_are_one_whole_unit() -> None:
    # One of three units, of 8 sequences in 2 chunks: a batch is a draw from 8 sequences
    # where an i.i.d. one is from 24.
    mix = Mix(make(16, 8, 3, 64), 3, (1,), 1)
    distinct = [n * (1 - np.exp(-16 / n)) for n in (8, 24)]
    wanted = 1 - distinct[0] / distinct[1]
    assert mixing_shortfall(mix, 8, 16) == pytest.approx(wanted, rel=1e-9)


def test_the_shortfall_is_no_less_than_nothing() -> None:
    # One unit of one chunk: a window holds every row there is.
    mix = Mix(make(16, 4, 1, 64), 1, (1,))
    assert mixing_shortfall(mix, 8, 4) == 0.0
    assert Mix(make(16, 4, 1, 64), 0, (1,)).group == 1
    assert Mix(make(16, 4, 3, 64), 3, (1,), 99).group == 3


def test_a_window_that_is_given_is_rounded_up_to_whole_lanes() -> None:
    mix = Mix(make(128, 4, 30, 256), 30, (1, 1))
    for asked, chunks in ((1, 8), (8, 8), (9, 16), (17, 24)):
        assert window_chunks(mix, 1, StreamSpec(window_chunks=asked)) == chunks
    with pytest.raises(
        SpecError,
        match=r"^`memory` plans the windows, and `window_chunks` gives their size;"
        " leave one of them out$",
    ):
        window_chunks(mix, 1, StreamSpec(window_chunks=8, memory=1 << 20))


def test_the_memory_holds_two_windows() -> None:
    mix = Mix(make(128, 4, 1000, 256), 1000, (1, 2))
    exact = StreamSpec(memory=2 * 1000 * 8, batch=1 << 20)
    assert window_chunks(mix, 1000, exact) == 8
    assert window_chunks(
        mix, 1000, StreamSpec(memory=2 * 1000 * 16, batch=1 << 20)
    ) == (16)
    with pytest.raises(
        SpecError,
        match=r"^two windows of 8 chunks \(one per lane\) of 3 columns take 16,000"
        " bytes, but `memory` is 15,999; raise it, or lower `lanes`$",
    ):
        window_chunks(mix, 1000, StreamSpec(memory=15_999))
    # no more than a group has, here one unit of 32 chunks, though more would be better
    small = Mix(make(128, 64, 10, 256), 10, (1,), 1)
    assert window_chunks(small, 1, StreamSpec()) == 32
    assert mixing_shortfall(small, 32, 4096) > TARGET
    # and no more than are needed
    assert TARGET == 0.02
    large = Mix(make(128, 640, 100, 1024), 100, (1,))
    chunks = window_chunks(large, 1, StreamSpec(batch=1 << 16))
    assert mixing_shortfall(large, chunks, 1 << 16) <= TARGET
    assert mixing_shortfall(large, chunks - 8, 1 << 16) > TARGET
