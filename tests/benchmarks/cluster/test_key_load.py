"""The keys of units: as the writer writes them, and spread over prefixes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.format import object_keys, s3_objects
from actstore.format.storage import Buffers, Storage
from actstore.harvesting.store_writer import StoreWriter
from tests.benchmarks.cluster.assumptions import SOURCES, Cluster
from tests.benchmarks.cluster.key_load import folder_of, unit_keys, unit_requests
from tests.benchmarks.cluster.scenarios import GPUS, site_names, unit_of
from tests.support import low_rank, make_plan, make_tokens, unit_rows

NAMES = st.sampled_from(["c", "units", "blocks.3.hook_mlp_out", "h.0", "norm", "x.c"])


class Written(Storage):
    """A folder that notes the keys that are written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.keys: list[str] = []

    def put(self, key: str, data: Buffers) -> None:
        self.keys.append(key)
        super().put(key, data)

    def create(self, key: str, data: Buffers) -> bool:
        self.keys.append(key)
        return super().create(key, data)


def test_the_keys_are_those_that_the_writer_writes(tmp_path: Path) -> None:
    plan = make_plan(n_units=3)
    storage = Written(tmp_path / "store")
    writer = StoreWriter.create(storage, plan)
    storage.keys.clear()
    tokens = make_tokens(plan, 1)
    block = writer.commit_block(1, tokens, {"document": 1}, last=False)
    writer.commit_unit(unit_rows(plan, 1, tokens, low_rank(plan)), block)
    writer.close()
    names = [site.name for site in plan.sites]
    assert sorted(storage.keys) == sorted(unit_keys(names, 1))


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, unique=True), st.integers(0, 10**6))
def test_a_folder_is_a_key_without_its_unit(sites: list[str], unit: int) -> None:
    here = [folder_of(key) for key in unit_keys(sites, unit)]
    assert here == [folder_of(key) for key in unit_keys(sites, unit + 1)]
    # Each array is a folder of its own; a unit's record and statistics share theirs.
    assert Counter(here).most_common(1)[0][1] <= 2
    assert len(set(here)) == 2 * len(sites) + 4


@settings(deadline=None)
@given(
    st.integers(1, 64),
    st.integers(1, 128 << 20),
    st.integers(0, 10**6),
    st.integers(1, 64),
)
def test_workers_write_to_as_many_prefixes_as_there_are_arrays(
    n_sites: int, shard_bytes: int, first: int, workers: int
) -> None:
    """What all workers write at a time is spread over sites: no folder gets more than
    six requests of a unit, however many sites there are.
    """
    sites = [f"blocks.{i}.hook_resid_post" for i in range(n_sites)]
    load: Counter[str] = Counter()
    for unit in range(first, first + workers):
        assert {folder_of(key) for key in unit_keys(sites, unit)} <= set(
            unit_requests(sites, shard_bytes).puts
        )
        load += unit_requests(sites, shard_bytes).puts
    assert max(load.values()) <= 6 * workers
    acts = [
        load[folder_of(object_keys.chunk_key(object_keys.acts_key(s), 0, 0))]
        for s in sites
    ]
    assert len(set(acts)) == 1  # all sites alike


@pytest.mark.parametrize("gpus", GPUS)
def test_no_prefix_of_the_simulated_clusters_comes_to_its_limit(gpus: int) -> None:
    cluster = Cluster()
    unit = unit_of(cluster)
    assert len(unit.requests.puts) == 2 * len(site_names(cluster)) + 4
    seconds = max(unit.make_s, unit.upload_s)
    assert gpus / seconds * max(unit.requests.puts.values()) < cluster.puts
    assert gpus / seconds * max(unit.requests.gets.values()) < cluster.gets


@given(st.integers(s3_objects.PART_BYTES + 1, 5 << 30))
def test_parts_are_few_and_no_larger_than_32_mib(n_bytes: int) -> None:
    part = s3_objects.part_bytes(n_bytes)
    assert s3_objects.PART_BYTES <= part <= 32 << 20
    n_parts = -(-n_bytes // part)
    assert n_parts <= max(s3_objects.PARTS_AT_ONCE, -(-n_bytes // (32 << 20)))


def test_every_figure_has_a_source() -> None:
    assert set(SOURCES) == set(Cluster._fields)
    assert {one.kind for one in SOURCES.values()} == {
        "measured",
        "documented",
        "assumed",
    }
