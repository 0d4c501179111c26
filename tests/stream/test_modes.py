"""Tests of the ways to stream.

Weights, aligned rows, pairs, filters, skipped rows, int8 on a device.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import CorruptError, SpecError
from actstore.store.store import Store
from actstore.stream.columns import turns
from actstore.stream.group_cells import KeptRows
from actstore.stream.stream import Batch, StreamWarning
from schemas.stream import StreamSpec, StreamState
from tests.stream.test_order import make_order
from tests.support import make_store

SMALL = {"batch": 37, "window_chunks": 6, "lanes": 2}
WIDE = {
    f"blocks.{i}.{kind}": 16
    for i in range(3)
    for kind in ("hook_mlp_in", "hook_mlp_out")
}
OUT = tuple(f"blocks.{i}.hook_mlp_out" for i in range(3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("modes") / "store",
        WIDE,
        n_units=23,
        unit_sequences=2,
        padded=True,
    )


def spec(**changes: Any) -> StreamSpec:
    return StreamSpec.model_validate({**SMALL, "sites": OUT, **changes})


def collect(store: Store, one: StreamSpec, **runtime: Any) -> list[Batch]:
    with store.stream(one, **runtime) as stream:
        return list(stream)


def joined(batches: list[Batch]) -> Batch:
    parts = zip(*(b if b.target is not None else b[:3] for b in batches), strict=True)
    return Batch(*(torch.cat(part) for part in parts))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if x is not None and y is not None else x is y
        for m, n in zip(a, b, strict=True)
        for x, y in zip(m, n, strict=True)
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_turns_keep_every_stretch_in_proportion(copies: list[int]) -> None:
    order, n = turns(tuple(copies)), sum(copies)
    for i, count in enumerate(copies):
        come = np.cumsum([0, *(one == i for one in order)])
        assert come[-1] == count
        assert all(
            abs(Fraction(int(c)) - Fraction(t * count, n)) < 1
            for t, c in enumerate(come)
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=12),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 2),
)
def test_weighted_sites_give_their_rows_at_most_once_an_epoch(
    counts: list[int], copies: list[int], epoch: int
) -> None:
    columns = turns(tuple(copies))
    order = make_order(counts, columns=columns)
    windows = list(order.windows(epoch))
    got = (
        np.concatenate([w.row for w in windows])
        if windows
        else np.zeros((0, len(columns)), np.int64)
    )
    assert got.size == order.elements(epoch)
    every = np.concatenate(
        [
            np.arange(n) + unit * 16
            for unit, n in zip(order.units.unit, counts, strict=True)
        ]
    )
    most = max(copies)
    for site, count in enumerate(copies):
        rows = got[:, np.array(columns) == site].reshape(-1)
        assert len(np.unique(rows)) == len(rows) == len(got) * count
        assert np.isin(rows, every).all()
        # all but fewer than `most` chunks of each number of rows (4, or a unit's last)
        if count == most:
            assert len(rows) >= len(every) - (most - 1) * (4 + 3 + 2 + 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=12),
    st.integers(1, 3),
    st.data(),
)
def test_filtered_rows_come_once_and_no_others(
    bits: list[int], n_sites: int, data: st.DataObject
) -> None:
    mask = np.array(
        [[(word >> i) & 1 for i in range(16)] for word in bits], bool
    ).reshape(-1, 4, 4)
    if not mask.any():
        return
    kept = KeptRows(
        np.arange(len(bits)) * 2 + 1, np.packbits(mask, axis=-1), mask.sum(axis=-1)
    )
    order = make_order([16] * len(bits), columns=tuple(range(n_sites)), kept=kept)
    got = np.concatenate([window.row for window in order.windows(0)])
    unit, slot = np.nonzero(mask.reshape(-1, 16))
    for site in range(n_sites):
        np.testing.assert_array_equal(np.sort(got[:, site]), (2 * unit + 1) * 16 + slot)
    assert order.elements(0) == got.size
    first = data.draw(st.integers(0, len(got) - 1))
    windows = list(order.windows(0, first))
    rest = np.concatenate([window.row for window in windows])[
        first - windows[0].start :
    ]
    np.testing.assert_array_equal(rest, got[first:])


def check_values(
    store: Store, stream_sites: tuple[str, ...], batches: list[Batch]
) -> None:
    whole = joined(batches)
    for i, site in enumerate(stream_sites):
        here = whole.layer == i
        np.testing.assert_array_equal(
            whole.x[here].numpy(), store.read(site, whole.row[here].numpy())
        )


def test_weights_set_the_share_of_every_batch(store: Store) -> None:
    weights = {"blocks.0.*": 0.5, "blocks.2.hook_mlp_out": 1.5}
    batches = collect(store, spec(weights=weights))
    check_values(store, OUT, batches)
    for batch in batches[:-1]:
        counts = torch.bincount(batch.layer, minlength=3)
        for count, share in zip(counts.tolist(), (1 / 6, 2 / 6, 3 / 6), strict=True):
            assert abs(count - share * 37) < 2
    whole = joined(batches)
    rows = store.rows("train")
    for i in range(3):
        own = whole.row[whole.layer == i].numpy()
        assert len(np.unique(own)) == len(own)
    assert len(whole.row[whole.layer == 2]) >= 0.9 * len(rows)


def test_equal_weights_are_no_weights(store: Store) -> None:
    assert same(collect(store, spec(weights={"*.*.*": 3.0})), collect(store, spec()))


def test_another_epoch_of_a_light_site_has_other_rows(store: Store) -> None:
    with store.stream(
        spec(weights={"blocks.0.*": 1, "blocks.1.*": 4, "blocks.2.*": 4}, epochs=None)
    ) as stream:
        n = stream.batches_per_epoch
        epochs = [joined([next(stream) for _ in range(n)]) for _ in range(2)]
    first, second = (set(epoch.row[epoch.layer == 0].tolist()) for epoch in epochs)
    assert len(first & second) < 0.6 * len(first)


@pytest.mark.parametrize("rescale", ["none", "unit"])
def test_aligned_rows_are_the_same_tokens_at_all_sites(
    store: Store, rescale: str
) -> None:
    one = spec(mode="aligned", rescale=rescale, center=rescale != "none")
    with store.stream(one) as stream:
        batches, scale = list(stream), stream.rescaling
    whole = joined(batches)
    assert whole.x.shape == (len(store.rows("train")), 3, 16)
    np.testing.assert_array_equal(np.sort(whole.row.numpy()), store.rows("train"))
    for i, site in enumerate(OUT):
        wanted = store.read(site, whole.row.numpy())
        if scale.mean is not None:
            wanted = (wanted - scale.mean[i]) * scale.scale[i].astype(np.float32)
        np.testing.assert_allclose(whole.x[:, i].numpy(), wanted, rtol=1e-6, atol=1e-6)
    assert not whole.layer.any()


@pytest.mark.parametrize("weights", [None, {"blocks.1.*": 2.0}])
def test_pairs_are_input_and_output_of_the_same_tokens(
    store: Store, weights: dict[str, float] | None
) -> None:
    inputs = tuple(f"blocks.{i}.hook_mlp_in" for i in range(3))
    one = spec(
        mode="pairs", sites=inputs, targets=OUT, weights=weights, rescale="sqrt_d"
    )
    with store.stream(one) as stream:
        batches = list(stream)
        scales = stream.rescaling.scale, stream.target_rescaling.scale
    whole = joined(batches)
    for i in range(3):
        here, rows = whole.layer == i, whole.row[whole.layer == i].numpy()
        for got, site, scale in (
            (whole.x, inputs[i], scales[0][i]),
            (whole.target, OUT[i], scales[1][i]),
        ):
            np.testing.assert_allclose(
                got[here].numpy(), store.read(site, rows) * np.float32(scale), rtol=1e-6
            )
    if weights is None:
        assert len(whole.row) == 3 * len(store.rows("train"))


def test_pairs_may_differ_in_width(tmp_path: Path) -> None:
    two = make_store(tmp_path / "two", {"in": 8, "out": 12}, n_units=4)
    batch = collect(
        two, StreamSpec(sites=("in",), mode="pairs", targets=("out",), batch=11)
    )[0]
    assert batch.x.shape == (11, 8)
    assert batch.target is not None
    np.testing.assert_array_equal(
        batch.target.numpy(), two.read("out", batch.row.numpy())
    )


@pytest.mark.parametrize(
    "changes", [{"mode": "aligned"}, {"weights": {"blocks.0.*": 2.0}}, {"filter": True}]
)
def test_every_mode_resumes_and_shares_out_to_ranks(
    store: Store, changes: dict[str, Any]
) -> None:
    if "filter" in changes:
        changes = {"filter": {"positions": (1, 20)}}
    one = spec(**changes, epochs=2, batch=101)
    with store.stream(one) as stream:
        states, batches = [stream.state()], []
        for batch in stream:
            batches.append(batch)
            states.append(stream.state())
    with store.stream(one, threads=1) as again:
        for i in range(0, len(states), 3):
            again.restore(StreamState.model_validate_json(states[i].to_json()))
            assert same(list(again), batches[i:])
    ranks = [collect(store, one, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(batches, *ranks, strict=True):
        mine = torch.cat([part.row * 3 + part.layer for part in parts])
        assert torch.equal(
            mine.sort().values, (whole.row * 3 + whole.layer).sort().values
        )


def test_filters_by_token_and_position(store: Store) -> None:
    rule = {"exclude_tokens": [0, 7, 8], "positions": [2, 9]}
    whole = joined(collect(store, spec(filter=rule)))
    check_values(store, OUT, [whole])
    every = store.rows("train")
    where = store.provenance(every)
    wanted = every[
        (where.position >= 2) & (where.position < 9) & ~np.isin(where.token, [0, 7, 8])
    ]
    for i in range(3):
        np.testing.assert_array_equal(
            np.sort(whole.row[whole.layer == i].numpy()), wanted
        )
    some = joined(collect(store, spec(filter={"tokens": [5, 6]})))
    assert set(store.provenance(some.row.numpy()).token.tolist()) == {5, 6}


def test_filters_by_norm_use_the_stored_norms(store: Store) -> None:
    rule = {
        "norms": [
            {"sites": ["blocks.1.hook_mlp_out"], "low": 0.1, "high": 0.8},
            {"medians": 1.3},
        ]
    }
    whole = joined(collect(store, spec(filter=rule)))
    every = store.rows("train")
    norms = {site: store.read_norms(site, every) for site in OUT}
    exact = {
        site: np.quantile(values, [0.1, 0.5, 0.8]) for site, values in norms.items()
    }
    low, _, high = exact["blocks.1.hook_mlp_out"]
    keep = (norms["blocks.1.hook_mlp_out"] >= low) & (
        norms["blocks.1.hook_mlp_out"] <= high
    )
    for site in OUT:
        keep &= norms[site] <= 1.3 * exact[site][1]
    got = np.sort(whole.row[whole.layer == 0].numpy())
    # quantiles come from a histogram of bins 2.2 % wide: a few rows near the bounds may
    # fall on the other side
    assert len(np.setxor1d(got, every[keep])) <= 0.04 * len(every)
    assert 0.4 * len(every) < len(got) < 0.8 * len(every)


def test_a_filter_that_leaves_nothing_is_refused(store: Store) -> None:
    with pytest.raises(SpecError, match=r"the filter leaves no row.*positions"):
        store.stream(spec(filter={"positions": (90, 91)}))


@pytest.mark.parametrize(
    ("skip", "limit"), [(1, None), (37, 50), (100, 7), (4000, 1000)]
)
def test_skipped_rows_and_a_limit_cut_the_same_sequence(
    store: Store, skip: int, limit: int | None
) -> None:
    whole = joined(collect(store, spec(epochs=2)))
    got = joined(collect(store, spec(epochs=2, skip_rows=skip, limit_rows=limit)))
    end = None if limit is None else skip + limit
    assert torch.equal(got.row, whole.row[skip:end])
    assert torch.equal(got.x, whole.x[skip:end])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "pairs"}, "go together"),
        ({"targets": OUT}, "go together"),
        ({"mode": "aligned", "weights": {"blocks.0.*": 2}}, "every site"),
        ({"mode": "pairs", "targets": OUT[:2]}, "a target for each site"),
        ({"weights": {"blocks.0.*": 0.001}}, "simpler proportion"),
        ({"weights": {"blocks.7.*": 2}}, "no site matches"),
        ({"follow": True}, "follow=True"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    store: Store, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        store.stream(spec(**changes))


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_int8_decodes_on_the_device_as_on_the_host(tmp_path: Path, codec: str) -> None:
    eight = make_store(
        tmp_path / "int8", WIDE, n_units=6, dtype="int8", codec=codec, padded=True
    )
    for changes in (
        {},
        {"mode": "aligned"},
        {"sites": OUT[:2], "mode": "pairs", "targets": OUT[1:]},
    ):
        host = joined(collect(eight, spec(**changes)))
        with eight.stream(spec(**changes)) as stream:
            stream._gatherer._gathers_on_host = False
            device = joined(list(stream))
        for got, wanted in zip(device, host, strict=True):
            if wanted is not None:
                torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6)


def corrupted(folder: Path, codec: str = "lz4") -> Store:
    """A store with one chunk of one site flipped, and one shard of another missing."""
    store = make_store(folder / "store", n_units=6, codec=codec, padded=True)
    path = folder / "store" / "acts/blocks.1.hook_mlp_out/c/3/0"
    data = bytearray(path.read_bytes())
    data[20] ^= 4
    path.write_bytes(data)
    (folder / "store" / "acts/blocks.2.hook_mlp_out/c/2/0").unlink()
    return store


def test_corrupt_chunks_can_be_skipped_but_never_silently(tmp_path: Path) -> None:
    whole = joined(
        collect(make_store(tmp_path / "good", n_units=6, padded=True), spec(sites=None))
    )
    store = corrupted(tmp_path)
    with pytest.raises((CorruptError, actstore.errors.ObjectError)):
        collect(store, spec(sites=None))
    layout = store.layout
    unit, chunk = (
        whole.row // layout.capacity,
        whole.row % layout.capacity // layout.chunk_rows,
    )
    lost = ((whole.layer == 1) & (unit == 3) & (chunk == 0)) | (
        (whole.layer == 2) & (unit == 2)
    )
    stream = store.stream(spec(sites=None), on_corrupt="skip")
    with pytest.warns(StreamWarning, match=r"skipped \d+ chunks.* rows so far"), stream:
        got = joined(list(stream))
    assert torch.equal(got.row, whole.row[~lost])
    assert torch.equal(got.x, whole.x[~lost])
    assert stream.skipped_rows == int(lost.sum()) > 16


def test_a_smaller_window_than_mixing_wants_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=40, unit_sequences=8, chunk_rows=16)
    with pytest.warns(StreamWarning, match="fewer distinct sequences"):
        store.stream(StreamSpec(batch=512, lanes=1, memory=20_000))


def test_tensors_are_the_batches_alone(store: Store) -> None:
    for x, batch in zip(
        store.stream(spec()).tensors(), collect(store, spec()), strict=True
    ):
        assert torch.equal(x, batch.x)
