"""Other readers of Zarr give what a store holds: lazily, on a disk and on object
stores. The Python of `docs/guides/other-tools.md` is what is run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

import actstore
import actstore.format.zarr_bfloat16
from actstore.format.storage import Storage
from tests.support import make_store

SITE = "blocks.0.hook_mlp_out"
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "other-tools.md"


@pytest.fixture(params=["bfloat16", "float16", "float32", "int8"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> actstore.Store:
    return make_store(tmp_path / "s", n_units=3, padded=True, dtype=request.param)


def stored(store: actstore.Store, array: Any) -> np.ndarray[Any, Any]:
    """The rows of an array as another tool gives it, decoded if they are int8."""
    ids = store.rows()
    values = np.asarray(array)[ids]
    if values.dtype != np.int8:
        return values.astype(np.float32)
    group = zarr.open_group(store.url, mode="r")
    scale, step = (group[name][SITE][:] for name in ("scale", "step"))
    unit = ids // store.layout.capacity
    scaled = scale[ids].astype(np.float32)[:, None] * values.astype(np.float32)
    decoded: np.ndarray[Any, Any] = step[unit, 0] + step[unit, 1] * scaled
    return decoded


def test_dask_reads_nothing_before_it_computes(store: actstore.Store) -> None:
    dask_array = pytest.importorskip("dask.array")
    acts = xarray.open_zarr(store.url, group="acts", chunks={})
    site = acts[SITE]
    assert isinstance(site.data, dask_array.Array)
    assert sum(site.chunks[0]) == store.layout.n_slots
    # With the values gone, arithmetic can still be planned; with them back, computed.
    folder = Path(store.url) / "acts" / SITE
    (folder / "c").rename(folder / "away")
    doubled = site.astype("float32") * 2
    (folder / "away").rename(folder / "c")
    assert np.array_equal(np.asarray(doubled), 2 * np.asarray(site).astype("float32"))
    assert np.array_equal(stored(store, site), store.read(SITE))


def test_zarr_python_and_tensorstore_give_the_rows(store: actstore.Store) -> None:
    array = zarr.open_group(store.url, mode="r")["acts"][SITE]
    assert np.array_equal(stored(store, array[:]), store.read(SITE))
    path = f"{store.url}/acts/{SITE}/"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    theirs = tensorstore.open(spec).result()
    assert theirs.dtype.name == store.manifest.spec.dtype
    assert np.array_equal(stored(store, theirs.read().result()), store.read(SITE))


def test_a_memory_file_system_through_fsspec(memory_url: str, tmp_path: Path) -> None:
    store = copied(memory_url, tmp_path)
    acts = xarray.open_zarr(memory_url, group="acts", chunks={})
    assert np.array_equal(stored(store, acts[SITE]), store.read(SITE))


def test_s3_as_the_page_says_it(s3_url: str, s3_server: str, tmp_path: Path) -> None:
    run_the_page(f"{s3_url}/gpt2-mlp", s3_server, tmp_path)


@pytest.mark.real_s3
def test_a_real_s3_server_as_the_page_says_it(
    real_s3_url: str, real_s3_server: dict[str, str], tmp_path: Path
) -> None:
    run_the_page(real_s3_url, os.environ["AWS_ENDPOINT_URL"], tmp_path)


def run_the_page(url: str, endpoint: str, tmp_path: Path) -> None:
    """Run the page's Python for object stores with a store of ours."""
    store = copied(url, tmp_path)
    (code,) = re.findall(
        r"^```py\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    bucket, _, path = url.removeprefix("s3://").partition("/")
    for shown, real in {
        "https://s3.example.org": endpoint,
        "s3://team/gpt2-mlp": url,
        '"team"': f'"{bucket}"',
        '"gpt2-mlp/acts': f'"{path}/acts',
    }.items():
        assert shown in code
        code = code.replace(shown, real)
    names: dict[str, Any] = {}
    exec(code, names)
    assert np.array_equal(stored(store, names["acts"][SITE]), store.read(SITE))
    theirs = names["array"].read().result()
    assert np.array_equal(stored(store, theirs), store.read(SITE))


def copied(url: str, tmp_path: Path) -> actstore.Store:
    """A local store, whose objects are at the URL too."""
    store = make_store(tmp_path / "local", n_units=2, padded=True)
    there = Storage(url)
    for key in store.storage.list():
        there.put(key, store.storage.read(key))
    return store
