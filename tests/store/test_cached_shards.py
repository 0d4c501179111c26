"""A store that lies elsewhere, read by way of a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import actstore
from actstore.cache import shared_caches
from actstore.errors import CacheWarning, CorruptError, SpecError
from actstore.format.storage import Part, Storage
from schemas.stream import StreamSpec
from tests.s3_server.faulty_proxy import faulty
from tests.support import SITES, make_store

SITE = next(iter(SITES))
SIZE = 64 << 20


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    shared_caches.close_all()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A place that is not local; nothing lies there."""
    place = f"memory://{tmp_path.name}"
    yield f"{place}/store"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the requests for shards and other objects of rows, by kind."""
    counts: Counter[str] = Counter()
    read, read_ranges = Storage.read, Storage.read_ranges

    def counted_read(self: Storage, key: str, limit: int | None = None) -> bytes:
        counts["records" if key.endswith(".json") else key.partition("/")[0]] += 1
        return read(self, key, limit)

    def counted_ranges(self: Storage, key: str, ranges: Any) -> list[Part]:
        counts[key.partition("/")[0]] += len(ranges)
        return read_ranges(self, key, ranges)

    monkeypatch.setattr(Storage, "read", counted_read)
    monkeypatch.setattr(Storage, "read_ranges", counted_ranges)
    return counts


def batches(store: Any, **fields: Any) -> list[np.ndarray]:
    spec = StreamSpec(batch=64, epochs=1, **fields)
    stream = store.stream(spec)
    try:
        return [batch.x.float().numpy() for batch in stream]
    finally:
        stream.close()


@pytest.mark.parametrize(
    ("dtype", "codec"), [("bfloat16", "lz4"), ("float32", "raw"), ("int8", "zstd")]
)
def test_a_second_epoch_asks_for_nothing(
    url: str, tmp_path: Path, asked: Counter[str], dtype: str, codec: str
) -> None:
    make_store(url, dtype=dtype, codec=codec)
    plain = batches(actstore.open(url))
    asked.clear()
    folder = tmp_path / "cache"
    first = batches(actstore.open(url, cache=folder, cache_size=SIZE))
    assert asked["acts"] > 0
    assert asked["records"] == 1  # the manifest: no record of a unit is read
    # another process, later
    shared_caches.close_all()
    asked.clear()
    store = actstore.open(url, cache=folder)
    again = batches(store)
    # the manifest, the rows of units and the digests of their records
    assert asked == {"records": 1, "columns": 2}
    for one, other, third in zip(plain, first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)


def test_rows_tokens_and_norms_come_from_the_cache_as_well(
    url: str, tmp_path: Path, asked: Counter[str]
) -> None:
    make_store(url)
    stores = [
        actstore.open(url, cache=tmp_path / "cache", cache_size=SIZE) for _ in range(2)
    ]
    rows = slice(0, 300)
    read = []
    for store in stores:
        asked.clear()
        read.append(
            (store.read(SITE, rows), store.read_norms(SITE, rows), store.tokens([0, 5]))
        )
        store.provenance(rows)
    assert asked == {"columns": 1}
    for one, other in zip(*read, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_store_at_the_same_url_finds_nothing_of_the_first(
    url: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", "cache_size": SIZE}
    make_store(url, codec="raw")
    before = actstore.open(url, **options).read(SITE)
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/store", recursive=True)
    make_store(url, seed=1, codec="raw")
    after = actstore.open(url, **options).read(SITE)
    assert (before != after).any()
    np.testing.assert_array_equal(after, actstore.open(url).read(SITE))


def test_what_is_corrupt_there_is_told_of_and_not_kept(
    url: str, tmp_path: Path
) -> None:
    store = make_store(url)
    key = f"acts/{SITE}/c/0/0"
    good = store.storage.read(key)
    store.storage.put(key, bytes([good[0] ^ 1]) + good[1:])
    cached = actstore.open(url, cache=tmp_path / "cache", cache_size=SIZE)
    for _ in range(2):
        with pytest.raises(CorruptError, match="unit 0, site"):
            cached.read(SITE, slice(0, 4))
    store.storage.put(key, good)
    np.testing.assert_array_equal(
        cached.read(SITE, slice(0, 4)), store.read(SITE, slice(0, 4))
    )


def test_a_damaged_cache_is_not_a_damaged_store(url: str, tmp_path: Path) -> None:
    make_store(url)
    folder = tmp_path / "cache"
    store = actstore.open(url, cache=folder, cache_size=SIZE)
    rows = store.read(SITE)
    for path in (folder / "files").iterdir():
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    # the same process, which has compared them with their heads before
    fresh = actstore.open(url, cache=folder)
    with pytest.warns(CacheWarning, match="damaged"):
        np.testing.assert_array_equal(fresh.read(SITE), rows)
    np.testing.assert_array_equal(fresh.read(SITE), rows)


def test_a_store_that_is_followed_is_cached_under_the_same_keys(
    url: str, tmp_path: Path, asked: Counter[str]
) -> None:
    make_store(url)
    folder = tmp_path / "cache"
    followed = actstore.open(url, follow=True, cache=folder, cache_size=SIZE)
    batches(followed, follow=True)
    asked.clear()
    batches(actstore.open(url, cache=folder))
    assert asked["acts"] == 0


def test_the_environment_names_a_cache_for_stores_that_lie_elsewhere(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(url)
    make_store(str(tmp_path / "local"))
    monkeypatch.setenv("ACTSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACTSTORE_CACHE_SIZE", "50MB")
    actstore.open(tmp_path / "local").read(SITE)
    assert not (tmp_path / "cache").exists()
    actstore.open(url).read(SITE)
    cache = shared_caches.shared_cache(str(tmp_path / "cache"))
    assert cache is not None
    assert cache.size == 50_000_000
    assert cache.counts.misses > 0
    monkeypatch.setenv("ACTSTORE_CACHE_SIZE", "much")
    with pytest.raises(SpecError, match="ACTSTORE_CACHE_SIZE: 'much' is not a size"):
        actstore.open(url)


def test_a_local_store_is_never_cached(tmp_path: Path) -> None:
    make_store(str(tmp_path / "store"))
    for given in ({"cache": tmp_path / "cache"}, {"cache_size": SIZE}):
        with pytest.raises(SpecError, match="cache does nothing for a store on this"):
            actstore.open(tmp_path / "store", **given)
    assert not (tmp_path / "cache").exists()


def test_a_size_without_a_cache_is_refused(url: str) -> None:
    make_store(url)
    with pytest.raises(SpecError, match="cache_size: there is no cache"):
        actstore.open(url, cache_size="20GB")


def test_a_cache_smaller_than_two_windows_is_refused(url: str, tmp_path: Path) -> None:
    make_store(url, {SITE: 512}, n_units=8, unit_sequences=64, context=32)
    store = actstore.open(url, cache=tmp_path / "cache", cache_size=16 << 20)
    store.stream(batch=64, window_chunks=16).close()
    with pytest.raises(SpecError, match="16,777,216 bytes; the stream's two windows"):
        store.stream(batch=64, window_chunks=448)


def test_a_folder_that_cannot_be_used_is_told_of_and_left_out(
    url: str, tmp_path: Path
) -> None:
    make_store(url)
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="reading goes on without it"):
        store = actstore.open(url, cache=tmp_path / "file" / "cache")
    assert len(store.read(SITE, slice(0, 3))) == 3


def test_a_folder_with_something_else_is_refused(url: str, tmp_path: Path) -> None:
    make_store(url)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SpecError, match="not empty"):
        actstore.open(url, cache=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_two_sizes_in_one_process(url: str, tmp_path: Path) -> None:
    make_store(url)
    first = actstore.open(url, cache=tmp_path / "cache", cache_size="40MB")
    second = actstore.open(url, cache=tmp_path / "cache", cache_size="30MB")
    np.testing.assert_array_equal(first.read(SITE), second.read(SITE))
    cache = shared_caches.shared_cache(str(tmp_path / "cache"))
    assert cache is not None
    assert cache.status().size == 30_000_000


def test_verifying_reads_the_store_itself(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(url)
    monkeypatch.setenv("ACTSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACTSTORE_CACHE_SIZE", "64MB")
    store = actstore.open(url)
    store.read_norms(SITE)
    key = f"norm/{SITE}/c/0"
    good = store.storage.read(key)
    store.storage.put(key, bytes([good[0] ^ 1]) + good[1:])
    for given in (url, store):
        assert any(key in problem for problem in actstore.verify(given).problems)


def test_servers_with_buckets_of_one_name_share_no_file(
    s3_url: str, s3_server: str, tmp_path: Path
) -> None:
    """What a stranger's server says counts for that server only."""
    make_store(f"{s3_url}/store")
    counts = []
    with faulty(s3_server) as stranger:
        for endpoint in (stranger.url, s3_server, stranger.url):
            store = actstore.open(
                f"{s3_url}/store",
                {"endpoint_url": endpoint},
                cache=tmp_path / "cache",
                cache_size=SIZE,
            )
            before = shared_caches.shared_cache(str(tmp_path / "cache")).counts
            store.read(SITE)
            after = shared_caches.shared_cache(str(tmp_path / "cache")).counts
            counts.append((after.misses > before.misses, after.hits > before.hits))
    assert counts == [(True, False), (True, False), (False, True)]
