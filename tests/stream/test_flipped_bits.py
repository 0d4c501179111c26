"""A thousand flipped bits and more: none is read as a value, and each error says where
it lies.

One bit of one shard at a time, anywhere in it (chunks and index), at every place that a
store can lie in and with every codec that is offered by default. `Store.read` and a
stream meet each bit with handles that are new, so that nothing is remembered from
before. Indexes whose checksum is right, but whose entries are nonsense, are met as
well.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import actstore
from actstore.cli import app
from actstore.errors import CorruptError
from actstore.format.object_keys import acts_key, chunk_key
from actstore.format.shard import ABSENT, with_checksum
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from actstore.store.store import Store
from schemas.stream import StreamSpec
from tests.support import make_store

SITES = {"a": 8, "b": 8}
# the third chunk of a unit is partial, so its padding is flipped too
UNITS, ROWS, CHUNK = 4, 40, 16
BITS = 250  # for each of the six cases below
CASES = [
    (place, codec, dtype)
    for place in ("local", "memory")
    for codec, dtype in (("lz4", "bfloat16"), ("raw", "bfloat16"), ("lz4", "int8"))
]


class Flip(NamedTuple):
    """A bit of a shard; chunk is None where it lies in the index."""

    unit: int
    site: str
    chunk: int | None
    bit: int

    @property
    def key(self) -> str:
        return shard(self.site, self.unit)


def shard(site: str, unit: int) -> str:
    return chunk_key(acts_key(site), unit, 0)


@pytest.fixture(params=CASES, ids="-".join)
def store(request: pytest.FixtureRequest) -> Store:
    place, codec, dtype = request.param
    url = request.getfixturevalue("tmp_path" if place == "local" else "memory_url")
    return make_store(
        f"{url}/store",
        SITES,
        n_units=UNITS,
        unit_sequences=1,
        context=ROWS,
        chunk_rows=CHUNK,
        codec=codec,
        dtype=dtype,
    )


def flips(store: Store, n: int) -> Iterator[Flip]:
    """Seeded bits, uniform over a shard's bytes; units and sites in turn."""
    rng = np.random.default_rng(0)
    places = [(unit, site) for unit in range(UNITS) for site in SITES]
    for i in range(n):
        unit, site = places[i % len(places)]
        index = store.index(site, unit)
        there = index.offset != ABSENT
        ends = (index.offset + index.length)[there].astype(np.int64)
        bit = int(rng.integers(0, 8 * store.storage.size(shard(site, unit))))
        chunk = int(np.searchsorted(ends, bit // 8, side="right"))
        yield Flip(unit, site, chunk if chunk < len(ends) else None, bit)


def flipped(store: Store, flip: Flip) -> bytes:
    """Flip the bit in place; returns the bytes from before."""
    good = store.storage.read(flip.key)
    bad = bytearray(good)
    bad[flip.bit // 8] ^= 1 << flip.bit % 8
    replace(store, flip.key, bytes(bad))
    return good


def replace(store: Store, key: str, data: bytes) -> None:
    """Without the temporary name and the fsync of `put`, which would take most of the
    time.
    """
    if store.storage.local is None:
        store.storage.put(key, data)
    else:
        (store.storage.local / key).write_bytes(data)


def fresh(store: Store) -> Store:
    """The same store with nothing remembered."""
    return Store(store.storage, store.manifest)


def rows_of(store: Store, unit: int, chunk: int) -> np.ndarray:
    first = unit * store.layout.capacity + chunk * CHUNK
    return np.arange(first, min(first + CHUNK, unit * store.layout.capacity + ROWS))


def streamed(store: Store, site: str) -> dict[int, bytes]:
    """Every training row of a site through a stream: row id -> its values, as bytes."""
    with fresh(store).stream(
        StreamSpec(sites=(site,), batch=64, window_chunks=4, lanes=1), threads=1
    ) as stream:
        return {
            int(row): x.numpy().tobytes()
            for batch in stream
            for row, x in zip(batch.row, batch.x, strict=True)
        }


def test_every_flipped_bit_is_caught_by_reads_and_streams(store: Store) -> None:
    good = {site: streamed(store, site) for site in SITES}
    hit_index = 0
    for flip in flips(store, BITS):
        before = flipped(store, flip)
        chunk = 0 if flip.chunk is None else flip.chunk
        hit_index += flip.chunk is None
        named = f"unit {flip.unit}, site {flip.site}, chunk {chunk}: "
        # Raw chunks are found by arithmetic (of local ones, the stream's), so a bit of
        # the index must make no difference.
        by_arithmetic = flip.chunk is None and store.manifest.spec.codec == "raw"
        is_local = store.storage.local is not None
        rows = rows_of(store, flip.unit, chunk)
        if by_arithmetic and not is_local:
            wanted = [good[flip.site][row] for row in rows.tolist()]
            read = fresh(store).read(flip.site, rows)
            assert [row.tobytes() for row in read] == wanted
        else:
            with pytest.raises(CorruptError, match=flip.key) as error:
                fresh(store).read(flip.site, rows)
            assert flip.chunk is None or named in str(error.value)
        if by_arithmetic:
            assert streamed(store, flip.site) == good[flip.site]
        else:
            with pytest.raises(CorruptError, match=flip.key) as error:
                streamed(store, flip.site)
            assert f"unit {flip.unit}, site {flip.site}, chunk " in str(error.value)
            assert flip.chunk is None or named in str(error.value)
        replace(store, flip.key, before)
    assert hit_index > BITS // 20
    assert {site: streamed(store, site) for site in SITES} == good


def test_a_flipped_bit_leaves_other_chunks_as_they_are(store: Store) -> None:
    for flip in flips(store, 40):
        if flip.chunk is None:
            continue
        other = rows_of(store, flip.unit, (flip.chunk + 1) % 3)
        wanted = fresh(store).read(flip.site, other)
        before = flipped(store, flip)
        np.testing.assert_array_equal(fresh(store).read(flip.site, other), wanted)
        replace(store, flip.key, before)


def test_verify_names_exactly_the_objects_that_are_bad(store: Store) -> None:
    """All the same bits again, as many at a time as there are shards."""
    every = list(flips(store, BITS))
    n = UNITS * len(SITES)
    for first in range(0, BITS, n):
        now = every[first : first + n]
        before = {flip.key: flipped(store, flip) for flip in now}
        problems = verify(store).problems
        assert {
            problem.split(f"{store.url}/")[1].split(":")[0] for problem in problems
        } == set(before)
        assert len(problems) == len(before)
        for key, good in before.items():
            replace(store, key, good)
    assert verify(store).problems == []


def test_the_command_line_names_the_object(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = make_store(
        tmp_path_factory.mktemp("cli") / "store",
        SITES,
        n_units=UNITS,
        unit_sequences=1,
        context=ROWS,
    )
    flip = Flip(2, "b", 0, 77)
    flipped(store, flip)
    for more in ([], ["--json"]):
        done = CliRunner().invoke(app, ["verify", store.url, *more])
        assert done.exit_code == 1
        assert flip.key in done.stdout
    assert flip.key in json.loads(done.stdout)["problems"][0]


NONSENSE = {
    "behind the end": (2**40, 100),
    "behind any file": (2**63 + 5, 100),
    "longer than the shard": (0, 2**40),
    "longer than memory": (0, 2**62),
    "as long as a word allows": (0, ABSENT),
    "ending behind the last word": (ABSENT - 8, 100),
    "no bytes": (0, 0),
    "fewer than a checksum": (0, 3),
    "absent": (ABSENT, ABSENT),
    "half absent": (ABSENT, 100),
    "in the middle of a chunk": (7, 90),
}


@pytest.mark.parametrize("entry", sorted(NONSENSE))
@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_an_index_that_is_nonsense_under_a_right_checksum(
    request: pytest.FixtureRequest, place: str, codec: str, entry: str
) -> None:
    url = request.getfixturevalue("tmp_path" if place == "local" else "memory_url")
    store = make_store(
        f"{url}/store",
        SITES,
        n_units=UNITS,
        unit_sequences=1,
        context=ROWS,
        chunk_rows=CHUNK,
        codec=codec,
    )
    key, size = shard("a", 1), store.codec("a").index_bytes
    raw = store.storage.read(key)
    pairs = np.frombuffer(raw[-size:-4], "<u8").reshape(-1, 2).copy()
    pairs[1] = NONSENSE[entry]
    good = streamed(store, "a")
    replace(store, key, raw[:-size] + with_checksum(pairs.tobytes()))
    rows = rows_of(store, 1, 1)
    if codec == "raw" and place != "local":
        read = fresh(store).read("a", rows)
        wanted = [good[row] for row in rows.tolist()]
        assert [row.tobytes() for row in read] == wanted
    else:
        with pytest.raises(CorruptError, match=key):
            fresh(store).read("a", rows)
    if codec == "raw":
        assert streamed(store, "a") == good
    else:
        with pytest.raises(CorruptError, match=rf"{key}.*unit 1, site a, chunk "):
            streamed(store, "a")


@pytest.mark.parametrize("keep", [0, 1, 3, 60, -1])
@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_a_shard_that_is_cut_short(
    tmp_path_factory: pytest.TempPathFactory, codec: str, keep: int
) -> None:
    store = make_store(
        tmp_path_factory.mktemp("cut") / "store",
        SITES,
        n_units=2,
        unit_sequences=1,
        context=ROWS,
        codec=codec,
    )
    key = shard("a", 1)
    replace(store, key, Storage(store.url).read(key)[:keep])
    with pytest.raises(CorruptError, match=key):
        fresh(store).read("a", rows_of(store, 1, 0))
    if codec == "lz4":
        with pytest.raises(CorruptError, match=key):
            streamed(store, "a")


def test_values_are_compared_bit_by_bit(store: Store) -> None:
    """What the tests above compare does tell rows apart."""
    rows = streamed(store, "a")
    x = torch.from_numpy(fresh(store).read("a", sorted(rows)))
    assert [rows[row] for row in sorted(rows)] == [one.numpy().tobytes() for one in x]
    assert len(set(rows.values())) > len(rows) // 2
    assert actstore.open(store.url).manifest == store.manifest


def test_a_chunk_that_holds_fewer_rows_is_not_filled_up(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A chunk of another layout, its checksum right: Blosc alone would leave the rows
    after it as they were.
    """
    store = make_store(
        tmp_path_factory.mktemp("part") / "store",
        SITES,
        n_units=2,
        unit_sequences=1,
        context=ROWS,
    )
    codec, key = store.codec("a"), shard("a", 1)
    rows = codec.chunk_rows // 2
    half = dataclasses.replace(codec, chunk_rows=rows).encode(
        np.ones((rows, 8), codec.dtype)
    )
    raw, size = store.storage.read(key), codec.index_bytes
    body = b"".join(half[:2])
    pairs = np.frombuffer(raw[-size:-4], "<u8").reshape(-1, 2).copy()
    rest = raw[int(pairs[0, 1]) : -size]
    pairs[0, 1] = len(body)
    n = np.count_nonzero(pairs[:, 0] != ABSENT)
    pairs[:n, 0] = np.cumsum(pairs[:n, 1]) - pairs[:n, 1]
    replace(store, key, body + rest + with_checksum(pairs.tobytes()))
    for read in (
        lambda: fresh(store).read("a", rows_of(store, 1, 0)),
        lambda: streamed(store, "a"),
    ):
        with pytest.raises(
            CorruptError,
            match=r"unit 1, site a, chunk 0: the chunk decodes to 128 bytes, wanted"
            " 256",
        ):
            read()
