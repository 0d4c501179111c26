from __future__ import annotations

import numpy as np
import pytest

from actstore.errors import SpecError
from actstore.format.permutation import unit_permutation
from actstore.stream.mixing import TARGET, Mix, mixing_shortfall, window_chunks
from actstore.stream.order import Order
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
        unit_ids=np.arange(layout.n_units),
        unit_rows=np.full(layout.n_units, layout.capacity),
        columns=tuple(range(n_sites)),
        window_chunks=chunks,
        lanes=8,
        batch=BATCH,
        seed=1,
    )
    of_unit = [
        unit_permutation(0, u, layout.capacity) // layout.context
        for u in range(layout.n_units)
    ]
    sequence = np.concatenate(
        [own + u * layout.unit_sequences for u, own in enumerate(of_unit)]
    )
    windows = (
        window for _, window in zip(range(n_windows), order.windows(0), strict=False)
    )
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
