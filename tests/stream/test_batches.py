"""The contract of a stream, over small stores made by the real writer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import actstore
from actstore.errors import CorruptError, ObjectError, SiteError, SpecError
from actstore.format.stored_dtypes import to_float32
from actstore.store.chunk_reader import ChunkReader
from actstore.store.store import Store
from actstore.stream.stream import Batch
from schemas.stream import StreamSpec, StreamState
from tests.support import make_store

SMALL = {"batch": 37, "window_chunks": 6, "lanes": 2, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """23 units of unequal numbers of rows, most with a partial last chunk."""
    return make_store(
        tmp_path_factory.mktemp("stream") / "store",
        n_units=23,
        unit_sequences=2,
        padded=True,
    )


def spec(**changes: Any) -> StreamSpec:
    return StreamSpec.model_validate({**SMALL, **changes})


def collect(store: Store, one: StreamSpec, **runtime: Any) -> list[Batch]:
    with store.stream(one, **runtime) as stream:
        return list(stream)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if x is not None and y is not None else x is y
        for m, n in zip(a, b, strict=True)
        for x, y in zip(m, n, strict=True)
    )


def stream_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("stream-")]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_row_of_the_split_comes_once_with_its_values(
    store: Store, split: str
) -> None:
    batches = collect(store, spec(split=split))
    layer, row = (
        torch.cat([getattr(b, name) for b in batches]).numpy()
        for name in ("layer", "row")
    )
    x = torch.cat([b.x for b in batches]).float().numpy()
    wanted = store.rows(split)
    for i, site in enumerate(store.sites):
        np.testing.assert_array_equal(np.sort(row[layer == i]), wanted)
        np.testing.assert_array_equal(x[layer == i], store.read(site, row[layer == i]))
    assert {len(b.x) for b in batches[:-1]} == {37}
    assert len(batches[-1].x) == 3 * len(wanted) - 37 * (len(batches) - 1)


def test_batches_hold_the_layers_in_exact_proportion(store: Store) -> None:
    for batch in collect(store, spec()):
        counts = torch.bincount(batch.layer, minlength=3)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("threads", [1, 5])
def test_the_sequence_depends_on_neither_threads_nor_time(
    store: Store, threads: int
) -> None:
    assert same(
        collect(store, spec(), threads=threads), collect(store, spec(), threads=2)
    )


def test_another_seed_or_epoch_is_another_sequence(store: Store) -> None:
    two = collect(store, spec(epochs=2))
    n = len(two) // 2
    other = collect(store, spec(seed=1))
    assert same(two[:n], collect(store, spec()))
    for a, b in ((two[:n], two[n:]), (two[:n], other)):
        assert (
            np.mean([torch.equal(x.row, y.row) for x, y in zip(a, b, strict=True)])
            < 0.05
        )


def test_restoring_at_every_batch_gives_the_rest(store: Store) -> None:
    one = spec(epochs=2, sites=("blocks.0.*", "blocks.2.*"), batch=101)
    with store.stream(one) as stream:
        states, batches = [stream.state()], []
        for batch in stream:
            batches.append(batch)
            states.append(stream.state())
    with actstore.open(store.url).stream(one, threads=1) as again:
        for i, state in enumerate(states):
            again.restore(StreamState.model_validate_json(state.to_json()))
            assert same(list(again), batches[i:])


def test_a_state_of_another_store_or_spec_is_refused(
    store: Store, tmp_path: Path
) -> None:
    state = store.stream(spec()).state()
    with pytest.raises(SpecError, match="another StreamSpec"):
        store.stream(spec(batch=38)).restore(state)
    with pytest.raises(SpecError, match="another StreamSpec"):
        store.stream(spec(window_chunks=8)).restore(state)
    other = make_store(tmp_path / "other", n_units=23, unit_sequences=2, seed=1)
    with pytest.raises(SpecError, match="another store"):
        other.stream(spec()).restore(state)
    store.stream(spec(epochs=7, limit_rows=9)).restore(state)  # neither changes a batch
    with pytest.raises(
        SpecError,
        match="`memory` plans the windows, and `window_chunks` gives their size",
    ):
        store.stream(spec(memory=1 << 29))


def test_ranks_deliver_the_lanes_of_the_same_global_batches(store: Store) -> None:
    whole = collect(store, spec(lanes=4, window_chunks=8))
    for world in (2, 4):
        parts = [
            collect(store, spec(lanes=4, window_chunks=8), rank=r, world=world)
            for r in range(world)
        ]
        for i, batch in enumerate(whole):
            mine = torch.cat([part[i].row * 3 + part[i].layer for part in parts])
            assert torch.equal(
                mine.sort().values, (batch.row * 3 + batch.layer).sort().values
            )
            for own in (batch, *(part[i] for part in parts)):
                assert torch.equal(own.row, batch.row[own.batch_position])
                assert torch.equal(own.layer, batch.layer[own.batch_position])
                assert (own.batch_position.diff() > 0).all()
            assert batch.batch_position is not None
            assert torch.equal(batch.batch_position, torch.arange(len(batch.x)))
    with pytest.raises(SpecError, match="do not divide"):
        store.stream(spec(), world=3)
    with pytest.raises(SpecError, match="rank 2 of 2"):
        store.stream(spec(), rank=2, world=2)


@pytest.mark.parametrize("limit", [1, 37, 100, 5000])
def test_limit_rows_is_exact_and_crosses_epochs(store: Store, limit: int) -> None:
    batches = collect(store, spec(limit_rows=limit, epochs=None))
    assert sum(len(b.x) for b in batches) == limit
    assert torch.equal(batches[0].row, collect(store, spec())[0].row[:limit])


def test_a_torch_dataloader_takes_the_stream(store: Store) -> None:
    with store.stream(spec()) as stream:
        assert same(
            [Batch(*b) for b in DataLoader(stream, batch_size=None)],
            collect(store, spec()),
        )


def test_a_worker_process_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore.stream.stream.get_worker_info", object)
    with pytest.raises(SpecError, match="num_workers=0"):
        iter(store.stream(spec()))


@pytest.mark.parametrize(
    "kind", ["none", "sqrt", "log", "log1p", "linear", "unit", "sqrt_d"]
)
@pytest.mark.parametrize("center", [False, True])
def test_rescaling_is_applied_to_each_row_by_its_layer(
    store: Store, kind: str, center: bool
) -> None:
    with store.stream(
        spec(rescale=kind, center=center, dtype="float32", limit_rows=200)
    ) as stream:
        scale, mean = stream.rescaling
        for batch in stream:
            for i, site in enumerate(stream.sites):
                here = (batch.layer == i).numpy()
                plain = store.read(site, batch.row.numpy()[here])
                wanted = (plain - (0 if mean is None else mean[i])) * scale[i].astype(
                    np.float32
                )
                np.testing.assert_allclose(
                    batch.x.numpy()[here], wanted, rtol=1e-6, atol=1e-6
                )


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_other_stores_and_other_places(dtype: str, codec: str) -> None:
    store = make_store(
        f"memory://stream-{dtype}-{codec}",
        n_units=5,
        dtype=dtype,
        codec=codec,
        padded=True,
    )
    batches = collect(store, spec(dtype="float32"))
    assert sum(len(b.x) for b in batches) == 3 * len(store.rows())
    for batch in batches[::5]:
        for i, site in enumerate(store.sites):
            here = (batch.layer == i).numpy()
            np.testing.assert_array_equal(
                batch.x.numpy()[here], store.read(site, batch.row.numpy()[here])
            )


def test_an_odd_width_is_gathered_rightly(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"a": 7, "b": 7}, n_units=3)
    batch = collect(store, spec())[0]
    for i, site in enumerate("ab"):
        here = (batch.layer == i).numpy()
        np.testing.assert_array_equal(
            batch.x.float().numpy()[here],
            to_float32(store.read(site, batch.row.numpy()[here])),
        )


def test_a_window_on_a_device_gives_the_same_batches(store: Store) -> None:
    """The path of a GPU, walked on the CPU: the window is copied and gathered from by
    torch.
    """
    runtimes: tuple[dict[str, Any], ...] = ({}, {"rank": 1, "world": 2})
    for runtime in runtimes:
        stream = store.stream(spec(rescale="log", center=True), **runtime)
        stream._gatherer._gathers_on_host = False
        assert same(
            list(stream), collect(store, spec(rescale="log", center=True), **runtime)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu(store: Store) -> None:
    wanted = collect(store, spec(epochs=2))
    got = collect(store, spec(epochs=2), device="cuda")
    assert same([Batch(*(field.cpu() for field in batch[:3])) for batch in got], wanted)


def test_bad_requests_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="mlp_out"):
        store.stream(spec(sites=("blocks.9.hook_mlp_out",)))
    two = make_store(tmp_path / "two", {"a": 8, "b": 16}, n_units=3)
    with pytest.raises(SpecError, match=r"one width.*a \(8\), b \(16\)"):
        two.stream(spec())
    with pytest.raises(SpecError, match="no held_out rows"):
        two.stream(spec(sites=("a",), split="held_out"))


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_a_flipped_bit_ends_the_stream_with_its_place(
    tmp_path: Path, codec: str
) -> None:
    store = make_store(tmp_path / "store", n_units=6, codec=codec)
    path = tmp_path / "store" / "acts/blocks.1.hook_mlp_out/c/3/0"
    data = bytearray(path.read_bytes())
    data[20] ^= 4
    path.write_bytes(data)
    with store.stream(spec(epochs=None)) as stream:
        with pytest.raises(
            CorruptError,
            match=r"unit 3, site blocks.1.hook_mlp_out, chunk 0.*actstore verify",
        ):
            list(stream)
        with pytest.raises(CorruptError):  # asking again neither hangs nor goes on
            next(stream)
    assert not stream_threads()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=6)
    (tmp_path / "store" / "acts/blocks.1.hook_mlp_out/c/3/0").unlink()
    with (
        store.stream(spec()) as stream,
        pytest.raises(ObjectError, match=r"blocks\.1\.hook_mlp_out/c/3/0"),
    ):
        list(stream)


@pytest.mark.timeout(300)
def test_a_reader_that_dies_ends_the_stream(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(10**6))

    def read(*_: object) -> None:
        if next(calls) > 20:
            raise ValueError("dead")

    monkeypatch.setattr(ChunkReader, "read", read)
    with store.stream(spec()) as stream, pytest.raises(ValueError, match="dead"):
        list(stream)
    assert not stream_threads()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("taken", [0, 1, 30])
def test_closing_early_joins_every_thread_and_the_stream_goes_on(
    store: Store, taken: int
) -> None:
    whole = collect(store, spec())
    stream = store.stream(spec(), threads=3)
    begun = [next(stream) for _ in range(taken)]
    stream.close()
    assert not stream_threads()
    assert same(begun + list(stream), whole)
    stream.close()


@pytest.mark.timeout(300)
def test_a_stream_that_is_dropped_leaves_no_thread(store: Store) -> None:
    stream = store.stream(spec())
    next(stream)
    del stream
    assert not stream_threads()


def test_a_batch_is_the_callers_own(store: Store) -> None:
    wanted = collect(store, spec())
    got = []
    with store.stream(spec()) as stream:
        for batch in stream:
            kept = {
                name: getattr(batch, name).clone() for name in ("x", "layer", "row")
            }
            got.append(batch._replace(**kept))
            batch.x.zero_()
            batch.row.zero_()
            batch.layer.zero_()
    assert same(got, wanted)
