"""Tests that `docs/FORMAT.md` alone suffices to write a store and to read one."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.inspect.verify import verify
from schemas.export import FOLDER
from tests.store import by_the_page
from tests.store.by_the_page.numbers import permutation
from tests.store.by_the_page.reader import read_site
from tests.store.by_the_page.writer import PageWriter
from tests.support import make_store

PAGE = (Path(__file__).parents[2] / "docs/FORMAT.md").read_text()


def written(
    folder: Path, dtype: str, codec: str, n: int = 41
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A store of 21 units, one of them held out, the last half full; padding, special
    tokens, a row that is not finite.
    """
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 9, (n, 5))
    tokens[3, 2:] = -1
    values = {
        "wide": rng.standard_normal((n, 5, 7)) * 3 + 1,
        "narrow": np.exp(rng.standard_normal((n, 5, 3))),
    }
    values = {name: x.astype(np.float32) for name, x in values.items()}
    if dtype in {"float32", "int8"}:
        values["wide"][7, 1, 2] = np.nan
    PageWriter(
        folder,
        values,
        tokens,
        dtype=dtype,
        codec=codec,
        unit_sequences=2,
        chunk_rows=4,
        seed=11,
        special=(8,),
    ).write()
    return values, tokens


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [("bfloat16", "lz4"), ("float16", "zstd"), ("float32", "raw"), ("int8", "lz4")],
)
def test_what_the_page_writes_is_a_store(
    tmp_path: Path, dtype: str, codec: str
) -> None:
    values, tokens = written(tmp_path / "s", dtype, codec)
    store = actstore.open(tmp_path / "s")
    assert verify(store).problems == []
    assert len(store.rows()) == (tokens >= 0).sum()
    found = store.provenance(store.rows())
    assert np.array_equal(found.token, tokens[found.sequence, found.position])
    for site, x in values.items():
        got, wanted = store.read(site), x[found.sequence, found.position]
        bad = ~np.isfinite(wanted).all(axis=1)
        assert np.array_equal(~np.isfinite(got).all(axis=1), bad)
        if dtype == "int8":
            assert np.abs(got - wanted)[~bad].max() < 0.1
        else:
            kept = wanted.astype(store.codec(site).dtype).astype(np.float32)
            assert np.array_equal(got, kept, equal_nan=True)
        own = read_site(tmp_path / "s", site)
        assert np.array_equal(
            np.array(
                [own[a, b] for a, b in zip(found.sequence, found.position, strict=True)]
            ),
            got,
            equal_nan=True,
        )


def whole(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Small whole numbers, whose sums are exact in any order."""
    d = {"a.b": 16, "c": 8}[site]
    return (
        sequence[:, None] * 31 + position[:, None] * 7 + np.arange(d) * 3 + len(site)
    ) % 17 - 8.0


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_same_rows_make_the_same_store_by_the_page_and_by_actstore(
    tmp_path: Path, dtype: str
) -> None:
    """Values, rows and tokens are equal to the byte, metadata as JSON, norms and
    statistics to rounding.
    """
    shape: dict[str, Any] = {"n_units": 21, "unit_sequences": 2, "context": 5}
    ours = make_store(
        tmp_path / "ours", {"a.b": 16, "c": 8}, whole, dtype=dtype, codec="raw", **shape
    )
    sequence, position = (x.reshape(-1) for x in np.mgrid[:42, :5])
    values = {
        name: whole(name, sequence, position).reshape(42, 5, -1).astype(np.float32)
        for name in ours.sites
    }
    PageWriter(
        tmp_path / "page", values, ours.tokens(np.arange(42)), dtype=dtype, codec="raw",
        unit_sequences=2, chunk_rows=16, seed=0, special=(0,),
    ).write()  # fmt: skip
    page = actstore.open(tmp_path / "page")
    for unit in range(21):
        assert ours.record(unit).objects.keys() == page.record(unit).objects.keys()
        for key in ours.record(unit).objects:
            if not key.startswith(("norm", "units")):
                assert ours.storage.read(key) == page.storage.read(key), key
    for name in ours.sites:
        assert np.allclose(ours.read_norms(name), page.read_norms(name), rtol=1e-6)
        assert np.allclose(ours.mean(name), page.mean(name))
        assert np.allclose(ours.variance(name), page.variance(name))
        assert figures(ours, name) == pytest.approx(figures(page, name), rel=1e-6)
    names = [
        "",
        "acts/",
        "norm/",
        "tokens/",
        "rows/",
        "acts/c/",
        "norm/a.b/",
        "columns/",
        "columns/sums/",
    ]
    for name in (
        *names,
        *(("scale/", "step/", "scale/c/", "step/c/") if dtype == "int8" else ()),
    ):
        assert json.loads(ours.storage.read(f"{name}zarr.json")) == json.loads(
            page.storage.read(f"{name}zarr.json")
        )


def figures(store: actstore.Store, name: str) -> dict[str, Any]:
    norms = store.norms[name]
    found = {"all": norms.all, "special": norms.special, "rest": norms.rest}
    flat = {
        f"{part} {key}": value
        for part, one in found.items()
        for key, value in one.model_dump().items()
    }
    return {key: value for key, value in flat.items() if "quantiles" not in key} | {
        f"{part} {i}": value
        for part, one in found.items()
        for i, value in enumerate(one.quantiles)
    }


def test_the_page_says_what_its_permutation_gives() -> None:
    assert " ".join(map(str, permutation(10, 0, 1, 0))) in PAGE


def test_every_key_of_every_file_is_on_the_page() -> None:
    def keys(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(keys, node)) if node else set()
        if not isinstance(node, dict):
            return set()
        own = (
            set(node["properties"])
            if isinstance(node.get("properties"), dict)
            else set()
        )
        return own.union(*map(keys, node.values()))

    for name in ("plan", "manifest", "unit", "block", "claim"):
        for key in keys(json.loads((FOLDER / f"{name}.json").read_text())):
            assert f"`{key}`" in PAGE, f"{name}: FORMAT.md does not name the key {key}"


def test_the_page_alone_was_used() -> None:
    for path in Path(by_the_page.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            a.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for a in node.names
        }
        names |= {
            str(node.module)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        ours = {
            name
            for name in names
            if name.split(".")[0] in {"actstore", "schemas", "trainer", "tests"}
        }
        assert all(name.startswith(by_the_page.__name__) for name in ours), path
