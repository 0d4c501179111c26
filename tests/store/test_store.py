"""A store through its handle: rows, norms, provenance, and what goes wrong."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import actstore
from actstore.errors import (
    CorruptError,
    ExistsError,
    FormatVersionError,
    NotAStoreError,
    SiteError,
    UnfinishedError,
)
from actstore.format.layout import held_out
from actstore.format.permutation import bijection, permutation
from actstore.harvesting.store_writer import StoreWriter
from actstore.inspect.verify import verify
from tests.support import low_rank, make_plan, make_store, make_tokens, unit_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "store_v1.json"


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return str(request.getfixturevalue(f"{request.param}_url")) + "/store"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_norms_and_provenance_are_those_harvested(url: str, dtype: str) -> None:
    store = make_store(
        url, n_units=21, unit_sequences=2, context=16, dtype=dtype, padded=True
    )
    plan = make_plan(n_units=21, unit_sequences=2, context=16, dtype=dtype)
    values = low_rank(plan)
    every = store.rows()
    assert (
        len(every)
        == store.manifest.n_rows
        == len(store.rows("train")) + len(store.rows("held_out"))
    )
    found = store.provenance(every)
    for unit in (0, 19, 20):
        tokens = make_tokens(plan, unit)
        tokens[unit % 2, 15 - unit % 5 :] = -1
        exact = unit_rows(plan, unit, tokens, values)
        here = np.flatnonzero(every // store.layout.capacity == unit)
        assert len(here) == len(exact.rows)
        order = np.lexsort((found.position[here], found.sequence[here]))
        assert (found.sequence[here][order] == exact.rows[:, 0]).all()
        assert (found.token[here][order] == tokens[tokens >= 0]).all()
        assert not (order == np.arange(len(order))).all(), "rows are not permuted"
        for site in store.sites:
            x, wanted = (
                store.read(site, every[here][order]),
                exact.values[site].astype(np.float32),
            )
            fvu = np.square(x - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()
            assert fvu < 2e-4 if dtype == "int8" else (x == wanted).all()
            assert np.allclose(
                store.read_norms(site, every[here][order]), exact.norms[site]
            )
    site, train = store.sites[1], store.rows("train")
    if dtype == "bfloat16":
        x = store.read(site, train).astype(np.float64)
        assert np.allclose(store.mean(site), x.mean(0))
        assert np.allclose(store.variance(site), x.var(0))
        assert store.norms[site].all.mean_norm == pytest.approx(
            np.linalg.norm(x, axis=1).mean()
        )
        assert store.norms[site].all.count == len(train)


def test_the_same_plan_gives_the_same_bytes_and_another_is_refused(
    tmp_path: Path,
) -> None:
    first, second = (
        make_store(tmp_path / "a", n_units=3),
        make_store(tmp_path / "b", n_units=3),
    )
    assert first.manifest == second.manifest
    for key in first.storage.list():
        assert first.storage.read(key) == second.storage.read(key), key
    assert (
        make_store(tmp_path / "c", n_units=3, seed=1).manifest.content_id
        != first.manifest.content_id
    )
    with pytest.raises(ExistsError, match="finished store"):
        StoreWriter.create(first.storage, make_plan(n_units=3))
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(ExistsError, match=r"spec\.seed: wanted 5, there is 0"):
        StoreWriter.create(first.storage, make_plan(n_units=3, seed=5))
    StoreWriter.create(first.storage, make_plan(n_units=3)).finish()
    assert actstore.open(first.url).manifest == second.manifest


def whole(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Small whole numbers, the same on every machine."""
    return (
        sequence[:, None] * 31 + position[:, None] * 7 + np.arange(16) * 3 + len(site)
    ) % 17 - 8.0


def golden(folder: Path) -> dict[str, dict[str, str]]:
    """Digests of the objects of two small stores."""
    digests = {}
    for dtype, codec in (("bfloat16", "raw"), ("int8", "raw")):
        store = make_store(
            folder / dtype,
            values=whole,
            n_units=2,
            unit_sequences=1,
            context=8,
            dtype=dtype,
            codec=codec,
        )
        keys = [
            key
            for key in store.storage.list()
            if not key.endswith(("zarr.json", "README.md"))
        ]
        digests[dtype] = {
            key: blake3(store.storage.read(key)).hexdigest()[:16] for key in keys
        }
    return digests


def test_golden_bytes(tmp_path: Path) -> None:
    """The bytes of the newest format. If this fails, stores are written differently: a
    new minor version is needed.

    What older ones hold is in `tests/fixtures`.
    """
    assert golden(tmp_path) == json.loads(GOLDEN.read_text())


def test_what_is_no_store_newer_unfinished_or_broken(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="manifest"):
        actstore.open(tmp_path)
    store = make_store(tmp_path / "s", n_units=2)
    manifest = tmp_path / "s" / "manifest.json"
    good = manifest.read_text()
    for bad, error in (
        (
            good.replace('"format_version": 1', '"format_version": 9'),
            FormatVersionError,
        ),
        (good.replace('"format": "actstore"', '"format": "other"'), NotAStoreError),
        (good[: len(good) // 2], CorruptError),
        (good.replace('"n_rows"', '"m_rows"'), CorruptError),
    ):
        manifest.write_text(bad)
        with pytest.raises(error):
            actstore.open(store.url)
    manifest.unlink()
    with pytest.raises(UnfinishedError, match="not ended"):
        actstore.open(store.url)


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_units=2, padded=True)
    with pytest.raises(SiteError, match=r"blocks\.0\.hook_mlp_out"):
        store.read("blocks.0.hook_mlp_uot", [0])
    for row in (-1, store.layout.capacity - 1, 10**9):
        with pytest.raises(IndexError, match="does not exist"):
            store.read(store.sites[0], [row])


def test_verify_names_every_bad_object(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_units=3)
    assert verify(store).problems == []
    keys = sorted(
        set(store.record(1).objects)
        | {"norms.stats", "columns/rows/c/0", "units/00002.json"}
    )
    for key in keys:
        path = tmp_path / "s" / key
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 4]))
        problems = verify(store).problems
        assert len(problems) == 1, key
        assert key.split("/00002")[0] in problems[0]
        path.write_bytes(good)
    assert verify(store).problems == []


def test_permutations_are_permutations_and_stay_what_they_are() -> None:
    for n in (1, 2, 3, 64, 1000):
        assert sorted(permutation(n, 1, n)) == list(range(n))
        assert sorted(bijection(np.arange(n), n, 1, n)) == list(range(n))
    assert permutation(10, 0, 1, 0).tolist() == LITERAL_PERMUTATION
    assert bijection(np.arange(10), 10, 0, 1).tolist() == LITERAL_BIJECTION
    assert [unit for unit in range(60) if held_out(unit)] == [19, 39, 59]
    assert permutation(1000, 0).tolist() != permutation(1000, 1).tolist()


LITERAL_PERMUTATION: list[int] = [5, 7, 2, 9, 4, 8, 3, 6, 0, 1]
LITERAL_BIJECTION: list[int] = [6, 1, 3, 8, 0, 7, 4, 9, 2, 5]


if __name__ == "__main__":  # python -m tests.store.test_store: writes the golden
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(
            json.dumps(golden(Path(folder)), indent=1, sort_keys=True) + "\n"
        )
