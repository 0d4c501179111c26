"""Tests that xarray and zarr-python open a store as it is.

It opens lazily, with names, and without a warning.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

import actstore
import actstore.format.zarr_bfloat16
from actstore.inspect.verify import verify
from tests.support import make_store

WIDE, NARROW = "blocks.0.hook_mlp_out", "blocks.0.attn.hook_z"
pytestmark = pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])


@pytest.fixture
def store(tmp_path: Path, dtype: str) -> actstore.Store:
    return make_store(
        tmp_path / "s", {WIDE: 16, NARROW: 8}, n_units=3, padded=True, dtype=dtype
    )


def test_xarray_opens_a_store_and_knows_its_valid_rows(store: actstore.Store) -> None:
    root, acts = xarray.open_zarr(store.url), xarray.open_zarr(store.url, group="acts")
    assert root.attrs == {"format": "actstore", "format_version": 1, "format_minor": 2}
    assert (root.tokens.dims, root.rows.dims) == (
        ("sequence", "position"),
        ("row", "pair"),
    )
    assert {name: one.dims for name, one in acts.items()} == {
        WIDE: ("row", "d_16"),
        NARROW: ("row", "d_8"),
    }
    ids = store.rows()
    valid = root.rows[:, 0] >= 0
    assert np.array_equal(np.flatnonzero(valid), ids)
    assert np.array_equal(
        root.tokens.values[tuple(root.rows.values[ids].T)], store.provenance(ids).token
    )
    assert not isinstance(acts[WIDE].variable._data, np.ndarray), (
        "read when it was opened"
    )
    x = acts[WIDE].astype("float32").where(valid)
    if store.manifest.spec.dtype == "int8":
        scale, step = (
            xarray.open_zarr(store.url, group=name)[WIDE] for name in ("scale", "step")
        )
        unit = np.arange(len(valid)) // store.layout.capacity
        x = (
            step.values[unit, 0]
            + step.values[unit, 1] * (scale.astype("float32") * x).values
        )
    assert np.array_equal(np.asarray(x)[ids], store.read(WIDE))
    assert np.isnan(np.delete(np.asarray(x), ids, axis=0)).all()


def test_a_tree_of_all_groups_and_nothing_is_masked(store: actstore.Store) -> None:
    tree = xarray.open_datatree(store.url, engine="zarr")
    assert np.array_equal(
        tree["norm"][WIDE].values[store.rows()], store.read_norms(WIDE)
    )
    assert tree["tokens"].dtype == tree["rows"].dtype == np.int32
    assert tree["columns"]["rows"].values.tolist() == store.unit_rows.tolist()
    assert tree["acts"][NARROW].dtype == store.codec(NARROW).dtype
    stated = tree["columns"]["sums"].sum(["unit", "stratum"]).values[:, 0]
    assert stated.tolist() == [store.manifest.n_rows] * 2


def test_the_list_of_the_root_is_what_zarr_python_would_write(
    store: actstore.Store, tmp_path: Path
) -> None:
    ours = json.loads((tmp_path / "s/zarr.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(
        store.url,
        copy,
        ignore=lambda _, names: [
            n
            for n in names
            if n.endswith((".json", ".md", ".stats", ".svg")) and n != "zarr.json"
        ],
    )
    for name in ("blocks", "units"):
        shutil.rmtree(copy / name)
    with pytest.warns(UserWarning, match="not part in the Zarr format 3 specification"):
        zarr.consolidate_metadata(zarr.storage.LocalStore(copy))
    theirs = json.loads((copy / "zarr.json").read_text())
    assert ours == theirs


def test_without_lists_a_store_is_as_good(
    store: actstore.Store, tmp_path: Path
) -> None:
    for name in ("", "acts", "norm"):
        path = tmp_path / "s" / name / "zarr.json"
        group = json.loads(path.read_text())
        del group["consolidated_metadata"]
        path.write_text(json.dumps(group))
    assert verify(store).problems == []
    acts = xarray.open_zarr(store.url, group="acts", consolidated=False)
    assert acts[WIDE].shape == (store.layout.n_slots, 16)


def test_a_list_that_is_wrong_is_found_and_mended(
    store: actstore.Store, tmp_path: Path
) -> None:
    path = tmp_path / "s" / "acts" / "zarr.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"d_16"', b'"d_17"'))
    assert [
        line
        for line in verify(store).problems
        if "acts/zarr.json" in line and "consolidated_metadata" in line
    ]
    assert verify(store, repair=True).repaired == ["acts/zarr.json"]
    assert path.read_bytes() == good
