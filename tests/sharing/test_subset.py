"""Parts of stores: stores of their own, whose rows are those of the whole."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import CorruptError, ExistsError, SiteError, SpecError
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from actstore.sharing.unit_selection import has, in_both, joined, unit_ranges
from tests.fixtures.old_stores import IMPORTED
from tests.support import SITES, grow, make_store

NAMES = list(SITES)
EXTRA = "blocks.1.hook_z"


@pytest.fixture(scope="module", params=["bfloat16", "int8"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> actstore.Store:
    """Of three generations, 23 units, with padding."""
    folder = tmp_path_factory.mktemp("whole")
    dtype = request.param
    first = make_store(
        folder / "s",
        n_units=19,
        padded=True,
        dtype=dtype,
        tokenizer_files={"tokenizer.json": b"{}"},
    )
    wider = grow(first, {EXTRA: 8}, 19, dtype)
    return grow(wider, {**SITES, EXTRA: 8}, 23, dtype)


def check(part: actstore.Store, whole: actstore.Store, kept: list[int]) -> None:
    """It is sound, and its rows are those of the whole."""
    assert verify(part).problems == []
    assert [k for k in range(part.manifest.n_units) if part.unit_rows[k]] == kept
    capacity = whole.layout.capacity
    for split in ("train", "held_out"):
        wanted = whole.rows(split)
        wanted = wanted[np.isin(wanted // capacity, kept)]
        assert np.array_equal(part.rows(split), wanted)
    ids = part.rows()
    assert all(
        np.array_equal(a, b)
        for a, b in zip(part.provenance(ids), whole.provenance(ids), strict=True)
    )
    train = part.rows("train")
    for site in part.sites:
        assert np.array_equal(part.read(site, ids), whole.read(site, ids))
        assert np.array_equal(part.read_norms(site, ids), whole.read_norms(site, ids))
        assert part.norms[site].all.count == len(train)
        if len(train) and part.manifest.spec.dtype != "int8":
            x = part.read(site, train).astype(np.float64)
            assert np.allclose(part.mean(site), x.mean(axis=0))
            assert np.allclose(part.variance(site), x.var(axis=0))


@pytest.mark.parametrize(
    ("sites", "units", "kept"),
    [
        ("blocks.{0,2}.*", None, list(range(23))),
        (EXTRA, None, list(range(23))),
        (None, "0:7", list(range(7))),
        (["blocks.1.*"], "1:3,5,18:21", [1, 2, 5, 18, 19, 20]),
        (None, "19", [19]),
    ],
)
def test_rows_norms_statistics_and_provenance_are_those_of_the_whole(
    store: actstore.Store,
    memory_url: str,
    sites: str | list[str] | None,
    units: str | None,
    kept: list[int],
) -> None:
    copied = actstore.copy(store.url, memory_url, sites=sites, units=units)
    part = actstore.open(memory_url)
    check(part, store, kept)
    assert part.manifest.content_id == copied.content_id != store.manifest.content_id
    assert part.manifest.subset is not None
    assert part.manifest.subset.parent == store.manifest.content_id
    assert part.storage.read("tokenizer/tokenizer.json") == b"{}"
    again = actstore.copy(store.url, memory_url, sites=sites, units=units)
    assert again.was_there
    assert again.content_id == copied.content_id


def test_a_part_streams_its_training_rows_once(
    store: actstore.Store, memory_url: str
) -> None:
    actstore.copy(store.url, memory_url, sites="blocks.0.*", units="2,4:6,19,21:")
    part = actstore.open(memory_url)
    rows = np.concatenate([batch.row for batch in part.stream(batch=32)])
    assert np.array_equal(np.sort(rows), part.rows("train"))


@settings(max_examples=10, deadline=None)
@given(
    units=st.sets(st.integers(0, 22), min_size=1),
    sites=st.sets(st.sampled_from([*NAMES, EXTRA]), min_size=1),
)
def test_any_part_is_a_store(
    store: actstore.Store,
    tmp_path_factory: pytest.TempPathFactory,
    units: set[int],
    sites: set[str],
) -> None:
    folder = tmp_path_factory.mktemp("part")
    text = ",".join(map(str, sorted(units, reverse=True)))
    actstore.copy(store.url, folder, sites=sorted(sites), units=text)
    part = actstore.open(folder)
    assert part.sites == tuple(site for site in store.sites if site in sites)
    check(part, store, sorted(units))


def test_a_part_of_a_part_keeps_numbers(store: actstore.Store, tmp_path: Path) -> None:
    actstore.copy(store.url, tmp_path / "a", units="1:4,9,19:21")
    actstore.copy(tmp_path / "a", tmp_path / "b", sites=NAMES[1], units="2:10")
    part = actstore.open(tmp_path / "b")
    check(part, store, [2, 3, 9])
    first = actstore.open(tmp_path / "a")
    assert part.manifest.subset is not None
    assert part.manifest.subset.parent == first.manifest.content_id
    assert part.manifest.subset.units == ((2, 4), (9, 10))
    actstore.copy(tmp_path / "a", tmp_path / "whole")
    assert actstore.open(tmp_path / "whole").manifest == first.manifest


def test_a_choice_of_everything_is_a_whole_copy(
    store: actstore.Store, memory_url: str
) -> None:
    copied = actstore.copy(store.url, memory_url, sites="*.*.*", units="0:")
    assert copied.content_id == store.manifest.content_id
    assert actstore.open(memory_url).manifest.subset is None


def test_the_same_part_is_the_same_bytes(store: actstore.Store, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 7)):
        actstore.copy(store.url, tmp_path / name, units="3:6", threads=threads)
    a, b = (Storage(tmp_path / name) for name in "ab")
    assert a.list() == b.list()
    assert all(a.read(key) == b.read(key) for key in a.list())


def test_an_import_from_an_iterator_has_parts_too(tmp_path: Path) -> None:
    items = ({"a": IMPORTED[i : i + 2], "b": IMPORTED[i : i + 2]} for i in (0, 2, 4))
    whole = actstore.import_activations(items, tmp_path / "s", unit_sequences=2)
    parts: dict[str, dict[str, Any]] = {
        "sites": {"sites": "b"},
        "units": {"units": "1"},
        "both": {"sites": "b", "units": "0:2"},
    }
    for name, options in parts.items():
        actstore.copy(whole.url, tmp_path / name, **options)
        part = actstore.open(tmp_path / name)
        assert verify(part).problems == []
        site = part.sites[-1]
        assert np.array_equal(part.read(site), whole.read(site, part.rows()))
        assert part.manifest.imported is not None
        assert [one.site for one in part.manifest.imported.arrays] == [*part.sites]


def test_a_part_is_not_extended(store: actstore.Store, tmp_path: Path) -> None:
    actstore.copy(store.url, tmp_path / "p", units="0:3")
    with pytest.raises(SpecError, match="a part of another one"):
        actstore.extend(tmp_path / "p", tokens=100)


def test_another_part_is_not_mixed_in(store: actstore.Store, tmp_path: Path) -> None:
    actstore.copy(store.url, tmp_path / "p", units="0:3")
    others: tuple[dict[str, Any], ...] = (
        {"units": "0:4"},
        {"sites": NAMES[0], "units": "0:3"},
        {},
    )
    for options in others:
        with pytest.raises(ExistsError, match="another store is there"):
            actstore.copy(store.url, tmp_path / "p", **options)


def test_a_corrupt_object_ends_a_part_too(tmp_path: Path, memory_url: str) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    for key in ("units/00002.stats", f"acts/{NAMES[0]}/c/2/0"):
        good = store.storage.read(key)
        store.storage.put(key, good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CorruptError, match=key):
            actstore.copy(store.url, memory_url, units="1:4")
        assert not Storage(memory_url).exists("manifest.json")
        store.storage.put(key, good)
    actstore.copy(store.url, memory_url, units="1:4")
    assert verify(memory_url).problems == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"parent": "x"}, "subset.parent is no digest"),
        ({"units": [[0, 2]]}, "subset.units end at 2"),
        ({"units": [[2, 3], [0, 1]]}, "subset.units: 0 to 1 after 3"),
        ({"units": [[1, 1], [2, 3]]}, "subset.units: 1 to 1"),
        ({"units": [[-1, 3]]}, "subset.units: -1 to 3"),
        ({"units": []}, "not a valid StoreManifest"),
    ],
)
def test_what_no_part_can_be(
    tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    actstore.copy(store.url, tmp_path / "p", units="2")
    path = tmp_path / "p/manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "subset": {**values["subset"], **change}}))
    with pytest.raises(CorruptError, match=fault):
        actstore.open(tmp_path / "p")


def test_verify_finds_a_part_that_lies(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    actstore.copy(store.url, tmp_path / "p", units="1:3")
    path = tmp_path / "p/manifest.json"
    text = path.read_text()
    path.write_text(text.replace(store.manifest.content_id, "0" * 64))
    assert any("subset.parent" in line for line in verify(tmp_path / "p").problems)
    path.write_text(text)
    assert verify(tmp_path / "p").problems == []


def test_what_cannot_be_chosen(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    with pytest.raises(SiteError):
        actstore.copy(store.url, tmp_path / "p", sites="blocks.9.*")
    for units in ("4", "2:1", "0:5", "", "a", "1,,2", "-1", "1:2:3", "1.0"):
        with pytest.raises(SpecError, match="units"):
            actstore.copy(store.url, tmp_path / "p", units=units)
    assert not (tmp_path / "p").exists()


@given(ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1))
def test_ranges_are_the_units_that_they_name(ranges: list[tuple[int, int]]) -> None:
    pairs = [(first, first + n) for first, n in ranges]
    wanted = {unit for first, end in pairs for unit in range(first, end)}
    made = joined(pairs)
    assert {unit for unit in range(50) if has(made, unit)} == wanted
    assert all(a[1] < b[0] for a, b in pairwise(made))
    assert unit_ranges(",".join(f"{a}:{b}" for a, b in pairs), 50) == made
    both = in_both(made, ((3, 9), (20, 25)))
    assert {unit for unit in range(50) if has(both, unit)} == wanted & {
        *range(3, 9),
        *range(20, 25),
    }
