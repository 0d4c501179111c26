"""Stores of many units: few requests, and memory that does not grow with them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import CorruptError, UnfinishedError
from actstore.format import object_keys
from actstore.format.manifest import read_plan
from actstore.format.storage import Storage
from actstore.harvesting.block_records import BlockRecords
from actstore.harvesting.finish_store import finish_generation
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.token_blocks import TokenBlocks
from actstore.harvesting.worker_share import Share
from actstore.machine.map_ahead import map_ahead
from actstore.store import column_pieces
from actstore.store.column_pieces import column_pieces as pieces_of
from actstore.store.committed_units import READS, committed_blocks
from actstore.store.description import describe
from actstore.store.store import Store
from tests.support import make_store
from tests.synthetic import CommittedUnits, linked_store

SITES = {"site.0": 8, "site.1": 8}


def writer_of(storage: CommittedUnits) -> StoreWriter:
    return StoreWriter(storage, storage.plan, threads=1)


# Starting and finishing, over what takes a request for each record


def test_whether_units_are_missing_is_known_from_listings_and_one_record(
    tmp_path: Path,
) -> None:
    storage = CommittedUnits(tmp_path, 5000, SITES)
    writer = writer_of(storage)
    assert writer.missing_units() == 0
    writer.close()
    # The newest block's record, and the question whether there is one after it.
    assert storage.requests["blocks"] == 2
    assert storage.requests["units"] == 0


@pytest.mark.parametrize(("share", "most"), [(Share(3, 100), 55), (Share(), 5001)])
def test_a_worker_reads_the_records_of_its_own_units(
    tmp_path: Path, share: Share, most: int
) -> None:
    storage = CommittedUnits(tmp_path, 5000, SITES)
    writer = writer_of(storage)
    blocks = TokenBlocks(storage.plan, writer, None, share)
    writer.close()
    units = set(share.units(storage.plan))
    assert blocks.committed_units == units
    assert set(blocks.records) >= units
    assert storage.requests["blocks"] <= most


def test_a_store_is_finished_from_a_record_after_the_other(tmp_path: Path) -> None:
    """Each record and statistics are read once, and no more are held than are read at
    a time.
    """
    peaks = []
    for n_units in (200, 1200):
        storage = CommittedUnits(tmp_path / str(n_units), n_units, SITES)
        writer = writer_of(storage)
        storage.requests.clear()
        tracemalloc.start()
        manifest = writer.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        writer.close()
        assert manifest.n_units == n_units
        assert manifest.n_rows == n_units * 16
        assert storage.requests["units"] == 2 * n_units
        assert storage.requests["blocks"] == 2
    # A thousand records more would be megabytes; columns grow by 300 bytes a unit.
    assert peaks[1] - peaks[0] < 1_500_000


def test_finishing_over_a_network_is_finishing_on_a_disk(tmp_path: Path) -> None:
    """Read many at a time, records come in the order of units: the same bytes."""
    make_store(tmp_path / "disk", SITES, n_units=40)
    disk = Storage(str(tmp_path / "disk"))
    wanted = {
        key: disk.read(key) for key in disk.list() if "columns" in key or "norms" in key
    }
    url = f"memory://{tmp_path}/network"
    network = Storage(url)
    for key in disk.list():
        if not key.startswith(("columns", "norms", "manifest", "README", "croissant")):
            network.put(key, disk.read(key))
    assert network.local is None
    finish_generation(network, read_plan(network, 0))
    assert {key: network.read(key) for key in wanted} == wanted


class Lacking(CommittedUnits):
    """Unit 150's record is not there."""

    def exists(self, key: str) -> bool:
        return key != object_keys.unit_key(150) and super().exists(key)

    def list(self, prefix: str = "") -> list[str]:
        keys = super().list(prefix)
        return [key for key in keys if key != object_keys.unit_key(150)]


def test_a_unit_that_is_missing_is_found_among_many(tmp_path: Path) -> None:
    storage = Lacking(tmp_path, 300, SITES)
    writer = writer_of(storage)
    assert writer.missing_units() == 1
    with pytest.raises(UnfinishedError, match=r"1 units are missing \(150"):
        writer.finish()
    writer.close()


# Blocks that are there, and the first that is not


class Chain(CommittedUnits):
    """Blocks up to `there` only."""

    there = 0

    def exists(self, key: str) -> bool:
        if key.startswith("blocks/"):
            self.requests["asked"] += 1
            return int(key.partition("/")[2].partition(".")[0]) < self.there
        return super().exists(key)

    def list(self, prefix: str = "") -> list[str]:
        return [] if prefix == "blocks" else super().list(prefix)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3000), st.integers(0, 2999), st.integers(0, 2999))
def test_the_first_missing_block_is_found_with_few_questions(
    tmp_path_factory: pytest.TempPathFactory, there: int, start: int, unit: int
) -> None:
    storage = Chain(tmp_path_factory.mktemp("chain"), 3000, SITES)
    storage.there = there
    writer = writer_of(storage)
    records = BlockRecords(writer, {}, is_alone=False)
    start = min(start, unit)
    found = records.first_missing(start, unit)
    writer.close()
    assert found == min(max(there, start), unit)
    assert storage.requests["asked"] <= 2 + 2 * (found - start + 1).bit_length()
    # What comes before it is known, so that the corpus is read on from there.
    assert found == start or found - 1 in records.known


def test_only_blocks_that_are_asked_for_are_read(tmp_path: Path) -> None:
    storage = CommittedUnits(tmp_path, 100, SITES)
    assert set(committed_blocks(storage, {3, 99, 1000})) == {3, 99}
    assert storage.requests["blocks"] == 2
    assert set(committed_blocks(storage)) == set(range(100))


# Columns, piece by piece


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_a_columns_pieces_are_the_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(column_pieces, "PIECE_BYTES", piece)
    store = make_store(tmp_path, SITES)
    for name in ("rows", "bytes", "digests", "sums"):
        whole = store.column(name)
        parts = list(pieces_of(store, name))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert len(parts) == 24 or piece > 1


@pytest.mark.parametrize("change", ["flipped", "shorter", "longer"])
def test_a_changed_column_is_refused(tmp_path: Path, change: str) -> None:
    store = make_store(tmp_path, SITES)
    path = next((tmp_path / "columns/sums/c").rglob("0"))
    while path.is_dir():
        path = path / "0"
    data = bytearray(path.read_bytes())
    if change == "flipped":
        data[len(data) // 2] ^= 1
    elif change == "shorter":
        del data[-9:]
    else:
        data += b"x"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="columns/sums"):
        list(pieces_of(store, "sums"))
    with pytest.raises(CorruptError, match="columns/sums"):
        describe(actstore.open(tmp_path))


def test_describing_a_store_takes_no_more_memory_with_more_units(
    tmp_path: Path,
) -> None:
    peaks = []
    for n_units in (1000, 40_000):
        store = linked_store(
            tmp_path / str(n_units),
            n_units=n_units,
            unit_rows=32,
            chunk_rows=16,
            n_sites=26,
            links=(),
        )
        tracemalloc.start()
        describe(Store(store.storage, store.manifest))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The column has 83 MB.
    assert peaks[1] < peaks[0] + (24 << 20)


# Many calls at a time, in order


@pytest.mark.parametrize("threads", [1, 2, READS])
def test_results_come_in_order_and_few_wait(threads: int) -> None:
    begun = []

    def square(number: int) -> int:
        begun.append(number)
        return number * number

    results = map_ahead(square, range(500), threads)
    for number, result in enumerate(results):
        assert result == number * number
        assert len(begun) <= number + threads + 2
    assert sorted(begun) == list(range(500))


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_comes_where_its_result_would(threads: int) -> None:
    def some(number: int) -> int:
        if number == 7:
            raise KeyError(number)
        return number

    results = map_ahead(some, range(100), threads)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError):
        next(results)
