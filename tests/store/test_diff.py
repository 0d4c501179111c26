"""`diff` tells in what two stores differ, whatever their layouts; and nothing where
they do not.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import actstore
from actstore.format import object_keys
from actstore.format.shard import encode_plain
from actstore.format.storage import Storage
from actstore.inspect.diff_stores import Shared
from actstore.inspect.matched_rows import MatchedRows
from actstore.store.store import Store
from tests.recomputing.forging import Forger
from tests.support import make_store

SITES = {"a": 8, "b": 4}


def by_row(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Values that depend on the row and the site alone, and not on the unit."""
    d = SITES.get(site, 8)
    base = sequence * 1000.0 + position
    return np.cos(base[:, None] * (1 + np.arange(d)) + len(site)) + 2


def arrays(n_sequences: int, first: int = 0) -> tuple[Any, np.ndarray]:
    """Activations of two sites, and tokens that tell sequences apart."""
    sequence, position = np.divmod(np.arange(n_sequences * 10), 10)
    sequence = sequence + first
    values = {
        site: by_row(site, sequence, position)
        .astype(np.float32)
        .reshape(n_sequences, 10, -1)
        for site in SITES
    }
    tokens = (sequence * 7 + position).reshape(n_sequences, 10)
    return values, tokens


def imported(url: Any, n_sequences: int, first: int = 0, **options: Any) -> Store:
    values, tokens = arrays(n_sequences, first)
    return actstore.import_activations(
        values, url, tokens=tokens, dtype="float32", **options
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "s", n_units=4, padded=True)


def test_a_store_and_its_copy_do_not_differ(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.url, tmp_path / "copy")
    found = actstore.diff(store, tmp_path / "copy")
    assert found.same
    assert found.fields == []
    assert found.rows == Shared(store.manifest.n_rows, 0, 0)
    assert {(one.rows, one.same_units) for one in found.values} == {(0, 4)}


def test_values_are_not_read_where_digests_agree(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.url, tmp_path / "copy")
    for folder in (tmp_path / "copy", Path(store.url)):
        shutil.rmtree(folder / "acts")
        shutil.rmtree(folder / "tokens")
        shutil.rmtree(folder / "rows")
    assert actstore.diff(store.url, tmp_path / "copy").same


def test_another_codec_is_a_setting_and_the_values_are_the_same(
    store: Store, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "o", n_units=4, padded=True, codec="raw")
    found = actstore.diff(store, other)
    assert not found.same
    assert [(one.path, one.a, one.b) for one in found.fields] == [
        ("spec.codec", "lz4", "raw")
    ]
    assert all(one.equal_rows == one.rows > 0 for one in found.values)


def test_one_value_is_found_and_how_far_it_is_off(tmp_path: Path) -> None:
    imported(tmp_path / "a", 12)
    values, tokens = arrays(12)
    values["b"][5, 3, 1] += 0.25
    b = actstore.import_activations(
        values, tmp_path / "b", tokens=tokens, dtype="float32"
    )
    found = actstore.diff(tmp_path / "a", b, rows=10**6)
    a_values, b_values = found.values
    assert (a_values.rows, a_values.largest) == (0, 0.0)
    assert b_values.largest == 0.25
    assert b_values.rows - b_values.equal_rows == 1
    assert 0 < b_values.relative < 0.05


def test_values_that_are_not_finite_in_one_store_alone(tmp_path: Path) -> None:
    values, tokens = arrays(12)
    for name in ("x", "y"):
        values["b"][5, 3] = np.nan
        if name == "y":
            values["b"][6, 0, 0] = np.inf
        with pytest.warns(UserWarning, match="not finite|NaN|infinit"):
            actstore.import_activations(
                values, tmp_path / name, tokens=tokens, dtype="float32"
            )
    same = actstore.diff(tmp_path / "x", tmp_path / "x", rows=10**6)
    assert same.same
    found = actstore.diff(tmp_path / "x", tmp_path / "y", rows=10**6)
    assert found.values[1].largest == np.inf
    assert found.values[1].rows - found.values[1].equal_rows == 1


@settings(max_examples=15, deadline=None)
@given(
    units=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    n=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    first=st.integers(0, 12),
)
@example(units=(4, 4), seeds=(0, 1), n=(8, 8), first=0)
@example(units=(4, 4), seeds=(0, 0), n=(8, 8), first=4)
def test_rows_are_matched_whatever_the_layouts(
    tmp_path_factory: pytest.TempPathFactory,
    units: tuple[int, int],
    seeds: tuple[int, int],
    n: tuple[int, int],
    first: int,
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    a = imported(folder / "a", n[0], unit_sequences=units[0], seed=seeds[0])
    # Its sequences are numbered from 0, and are `first` and so on of the other's.
    b = imported(folder / "b", n[1], first, unit_sequences=units[1], seed=seeds[1])
    there = sorted(set(range(n[0])) & set(range(first, first + n[1])))
    matched = MatchedRows(a, b)
    assert matched.sequences.tolist() == [[i, i - first] for i in there]
    for unit in a.units():
        ids = matched.of_unit(unit)
        in_a, in_b = a.provenance(ids.a), b.provenance(ids.b)
        assert (in_a.sequence - first == in_b.sequence).all()
        assert (in_a.position == in_b.position).all()
        assert (in_a.token == in_b.token).all()
        mine = a.provenance(np.arange(a.rows_in(unit)) + unit * a.layout.capacity)
        assert len(ids.a) == np.isin(mine.sequence, there).sum()
    found = actstore.diff(a, b)
    assert found.rows == Shared(
        10 * len(there), 10 * (n[0] - len(there)), 10 * (n[1] - len(there))
    )
    assert all(one.equal_rows == one.rows for one in found.values)


def test_equal_sequences_are_matched_in_order(tmp_path: Path) -> None:
    values, tokens = arrays(6)
    tokens[:] = tokens[0]
    a = actstore.import_activations(values, tmp_path / "a", tokens=tokens)
    fewer = {site: x[:4] for site, x in values.items()}
    b = actstore.import_activations(fewer, tmp_path / "b", tokens=tokens[:4])
    found = actstore.diff(a, b)
    assert found.sequences == Shared(4, 2, 0)


def test_sites_of_one_store_alone(tmp_path: Path) -> None:
    values, tokens = arrays(8)
    a = imported(tmp_path / "a", 8)
    others = {"b": values["b"], "a": values["a"][:, :, :3], "c": values["a"]}
    b = actstore.import_activations(
        others, tmp_path / "b", tokens=tokens, dtype="float32"
    )
    found = actstore.diff(a, b)
    # `a` has another width there, so it is another site
    assert (found.sites.both, found.sites.only_a) == (["b"], ["a"])
    assert sorted(found.sites.only_b) == ["a", "c"]
    assert [one.site for one in found.values] == ["b"]


def test_other_contexts_have_no_sequence_in_common(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a", n_units=2)
    b = make_store(tmp_path / "b", n_units=2, context=16)
    found = actstore.diff(a, b)
    assert found.sequences.both == found.rows.both == 0
    assert all(one.units == one.rows == 0 for one in found.values)


def test_an_import_without_tokens(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    actstore.import_activations({"x": rows}, tmp_path / "a", dtype="float32")
    actstore.import_activations(
        {"x": rows[:200]}, tmp_path / "b", dtype="float32", unit_sequences=70, seed=5
    )
    found = actstore.diff(tmp_path / "a", tmp_path / "b")
    assert found.rows == Shared(200, 100, 0)
    assert found.values[0].equal_rows == found.values[0].rows > 0


@settings(max_examples=15, deadline=None)
@given(
    a=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    b=st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
def test_as_many_are_matched_as_can_be(
    tmp_path_factory: pytest.TempPathFactory, a: list[int], b: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    stores = []
    for name, kinds in (("a", a), ("b", b)):
        tokens = np.array(kinds)[:, None] * 10 + np.arange(10)
        values = {"x": np.ones((len(kinds), 10, 4), np.float32)}
        stores.append(
            actstore.import_activations(
                values, folder / name, tokens=tokens, unit_sequences=3
            )
        )
    matched = MatchedRows(*stores).sequences
    assert len(matched) == (Counter(a) & Counter(b)).total()
    for i, j in matched.tolist():
        assert a[i] == b[j]
    for column in matched.T:
        assert len(set(column.tolist())) == len(column)


def test_other_steps_of_int8_are_other_values(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_units=3, dtype="int8")
    site = store.sites[0]
    scale, step = store.int8_parts(site, 1)
    for name in ("scale", "step"):
        forger = Forger(store)
        if name == "scale":
            key = object_keys.chunk_key(object_keys.scale_key(site), 1)
            forger.plain(key, scale[: store.rows_in(1)] * np.float16(2), 0)
        else:
            key = object_keys.chunk_key(object_keys.step_key(site), 1, 0, 0)
            shape = (1, *step.shape)
            forger.objects[key] = encode_plain(step[None] * 2, shape, 0)
        found = actstore.diff(store, forger.write(tmp_path / "f"))
        assert found.values[0].same_units == 2
        assert found.values[0].relative > 0.1
        assert found.fields == []
        assert not found.same
        assert all(one.same_units == 3 for one in found.values[1:])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("numerics.threads", 97),
        ("model.weights_digest", "0" * 64),
        ("spec.seed", 97),
        ("spec.model.revision", "main"),
        ("corpus_digest", "0" * 64),
        ("separator_token", 3),
    ],
)
def test_each_setting_that_differs_is_named(
    path: str, value: Any, store: Store, tmp_path: Path
) -> None:
    forger = Forger(store)
    *folders, last = path.split(".")
    for key in ("manifest.json", "plan.json"):
        told = json.loads(forger.objects[key])
        inner = told
        for name in folders:
            inner = inner[name]
        if folders or key == "plan.json":
            inner[last] = value
        forger.objects[key] = json.dumps(told).encode()
    other = actstore.open(forger.write(tmp_path / "f").url)
    found = actstore.diff(store, other)
    assert [(one.path, one.b) for one in found.fields] == [(path, value)]
    assert not found.same


def test_some_rows_are_compared_however_few_are_asked_for(
    store: Store, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "o", n_units=4, padded=True, codec="raw")
    assert all(one.rows for one in actstore.diff(store, other, rows=1).values)


@pytest.mark.parametrize("by", ["units", "sites", "both"])
def test_a_part_and_its_whole(by: str, tmp_path: Path) -> None:
    whole = make_store(tmp_path / "s", n_units=6, padded=True)
    part: dict[str, Any] = {
        "units": {"units": "1:3,5"},
        "sites": {"sites": "blocks.1.*"},
        "both": {"units": "1:3,5", "sites": "blocks.1.*"},
    }[by]
    actstore.copy(whole.url, tmp_path / "part", **part)
    found = actstore.diff(whole, tmp_path / "part")
    assert not found.same
    assert found.parents == (None, whole.manifest.content_id)
    # Which sites and how many tokens there are is told, and is no setting.
    assert found.fields == []
    kept = [1, 2, 5] if "units" in part else whole.units()
    n = int(whole.unit_rows[kept].sum())
    assert found.rows == Shared(n, whole.manifest.n_rows - n, 0)
    n = sum(whole.record(unit).n_sequences for unit in kept)
    assert found.sequences == Shared(n, whole.manifest.n_sequences - n, 0)
    for one in found.values:
        assert (one.units, one.same_units, one.rows) == (len(kept), len(kept), 0)
    back = actstore.diff(tmp_path / "part", whole)
    assert back.parents == (whole.manifest.content_id, None)
    assert (back.rows.both, back.rows.only_a) == (found.rows.both, 0)
    assert back.sites.only_b == found.sites.only_a
    shutil.copytree(tmp_path / "part", tmp_path / "same")
    assert actstore.diff(tmp_path / "part", tmp_path / "same").same


def test_a_value_that_differs_in_a_part_is_found(tmp_path: Path) -> None:
    for name, add in (("a", 0), ("b", 0.25)):
        values, tokens = arrays(24)
        values["a"][13, 3, 1] += add
        actstore.import_activations(
            values, tmp_path / name, tokens=tokens, dtype="float32", unit_sequences=4
        )
    actstore.copy(tmp_path / "b", tmp_path / "part", units="3")
    found = actstore.diff(tmp_path / "a", tmp_path / "part", rows=10**6)
    assert found.values[0].largest == 0.25
    assert (found.values[0].rows, found.values[0].equal_rows) == (40, 39)


def test_remote_stores(memory_url: str, s3_url: str, tmp_path: Path) -> None:
    for url in (f"{memory_url}/a", f"{s3_url}/b"):
        storage = Storage(url)
        store = make_store(tmp_path / url[-1], n_units=3)
        for key in store.storage.list():
            storage.put(key, store.storage.read(key))
    found = actstore.diff(f"{memory_url}/a", f"{s3_url}/b")
    assert found.same
    other = make_store(tmp_path / "c", n_units=3, codec="raw")
    assert actstore.diff(f"{s3_url}/b", other).values[0].rows > 0
