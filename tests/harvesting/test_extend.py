"""A finished store grows by sites or by tokens, and is then what one harvest of
everything would have made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.errors import CorpusError, CorruptError, ModelError, SiteError, SpecError
from actstore.format.object_sizes import COLUMNS, column_key
from actstore.format.shard import with_checksum
from actstore.format.storage import Storage
from actstore.harvesting.extend import extend
from actstore.harvesting.store_writer import StoreWriter
from actstore.inspect.verify import verify
from schemas.stream import StreamSpec

SPEC: dict[str, Any] = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": ("blocks.1.hook_mlp_out", "blocks.3.hook_mlp_out"),
    "tokens": 66 * 32,
    "context": 32,
    "batch": 2,
    "unit_sequences": 3,
    "skip_first": 1,
}
MORE = ("blocks.0.hook_resid_pre", "blocks.5.attn.hook_z")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = str(tmp_path_factory.mktemp("small") / "store")
    actstore.harvest(SPEC, out)
    storage = Storage(out)
    return {key: storage.read(key) for key in storage.list()}


@pytest.fixture
def url(small: dict[str, bytes], tmp_path: Path) -> str:
    storage = Storage(str(tmp_path / "store"))
    for key, data in small.items():
        storage.put(key, data)
    return storage.url


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> actstore.Store:
    """Everything in one harvest."""
    spec = {**SPEC, "sites": (*SPEC["sites"], *MORE), "tokens": 96 * 32}
    return actstore.harvest(spec, str(tmp_path_factory.mktemp("whole") / "store"))


def assert_same(a: actstore.Store, b: actstore.Store) -> None:
    """Same rows, tokens, values, norms and statistics, whatever the generations."""
    assert a.sites == b.sites
    assert np.array_equal(a.rows(), b.rows())
    rows = a.rows()
    for one, two in zip(a.provenance(rows), b.provenance(rows), strict=True):
        assert np.array_equal(one, two)
    for site in a.sites:
        assert np.array_equal(a.read(site, rows), b.read(site, rows))
        assert np.array_equal(a.read_norms(site, rows), b.read_norms(site, rows))
        assert np.array_equal(a.mean(site), b.mean(site))
        assert np.array_equal(a.variance(site), b.variance(site))
    assert a.manifest.norms == b.manifest.norms
    assert (a.manifest.n_rows, a.manifest.n_train_rows) == (
        b.manifest.n_rows,
        b.manifest.n_train_rows,
    )
    assert a.manifest.n_sequences == b.manifest.n_sequences
    assert verify(a).problems == []


@pytest.mark.parametrize("order", ["sites first", "tokens first"])
def test_extended_twice_is_one_harvest_of_everything(
    url: str, whole: actstore.Store, order: str
) -> None:
    ids = [actstore.open(url).manifest.content_id]
    steps: list[dict[str, Any]] = [{"sites": MORE}, {"tokens": 30 * 32}]
    for step in steps if order == "sites first" else reversed(steps):
        store = extend(url, **step)
        assert store.manifest.parent == ids[-1]
        ids.append(store.manifest.content_id)
    assert len(set(ids)) == 3
    assert len(store.manifest.generations) == 3
    assert_same(store, whole)
    assert store.record(1).objects.keys() == whole.record(1).objects.keys() - {
        "units/00001.stats"
    } | {
        "units/00001.stats",
        f"units-{1 if order == 'sites first' else 2}/00001.stats",
    }


def test_other_readers_see_the_grown_arrays(url: str) -> None:
    import zarr

    import actstore.format.zarr_bfloat16  # noqa: F401

    store = extend(url, tokens=30 * 32)
    array = zarr.open_group(url, mode="r")[f"acts/{store.sites[0]}"]
    assert array.shape[0] == store.manifest.n_units * store.layout.capacity
    rows = store.rows()[-5:]
    assert np.array_equal(
        np.stack([array[int(row)] for row in rows]).astype(np.float32),
        store.read(store.sites[0], rows),
    )


def test_an_open_store_and_its_stream_go_on_while_it_grows(url: str) -> None:
    before = actstore.open(url)
    batches = StreamSpec(batch=64, epochs=1)
    wanted = [batch.row.tolist() for batch in before.stream(batches)]
    extend(url, tokens=30 * 32)
    extend(url, sites=MORE)
    assert [batch.row.tolist() for batch in before.stream(batches)] == wanted
    assert verify(before).problems == []


class StoppedError(Exception):
    pass


def test_an_interrupted_extension_leaves_the_store_and_resumes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = actstore.open(url).manifest
    commit, calls = StoreWriter.commit, []

    def failing(self: StoreWriter, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise StoppedError
        return commit(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", failing)
        with pytest.raises(StoppedError):
            extend(url, sites=MORE)
    assert actstore.open(url).manifest == before
    assert verify(actstore.open(url)).problems == []
    assert extend(url, sites=MORE).sites == (*SPEC["sites"], *MORE)


def test_what_cannot_be_added_is_refused(url: str, tmp_path: Path) -> None:
    before = Storage(url).list()
    with pytest.raises(SpecError, match="either more sites or more tokens"):
        extend(url)
    with pytest.raises(
        SiteError, match=r"blocks\.1\.hook_mlp_out: the store has that already"
    ):
        extend(url, sites="blocks.1.hook_mlp_out")
    from actstore.model.load_model import load_model
    from schemas.source import ModelSource

    other = load_model(ModelSource(name="builtin:mini")).module
    next(other.parameters()).data[0] += 1
    with pytest.raises(ModelError, match="its weights differ"):
        extend(url, sites=MORE, model=other)
    assert Storage(url).list() == before


@pytest.mark.parametrize("name", [*COLUMNS, "stats"])
def test_nothing_is_added_to_columns_or_statistics_that_were_changed(
    url: str, name: str
) -> None:
    """With a right checksum, before the model is loaded."""
    key = "norms.stats" if name == "stats" else column_key(0, name)
    body = Storage(url).read(key)
    body = body if name == "stats" else body[:-4]
    changed = bytes([body[0] ^ 1]) + body[1:]
    Storage(url).put(key, changed if name == "stats" else with_checksum(changed))
    with pytest.raises(CorruptError, match=f"{key}: its bytes are not those recorded"):
        extend(url, sites=MORE)
    assert Storage(url).list("plan-1.json") == []


def test_a_corpus_that_has_ended_or_changed_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.py").write_text("def f(x):\n    return x\n" * 60)
    spec = {**SPEC, "corpus": str(corpus), "tokens": 100_000}
    with pytest.warns(UserWarning, match="ended early"):
        actstore.harvest(spec, str(tmp_path / "store"))
    with pytest.raises(CorpusError, match="harvested to its end"):
        extend(str(tmp_path / "store"), tokens=320)
    (corpus / "b.py").write_text("import os\n" * 300)
    with pytest.raises(CorpusError, match="is not what it was"):
        extend(str(tmp_path / "store"), tokens=320)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tokens": 1.5}, "tokens: wanted a count above 0"),
        ({"tokens": True}, "tokens: wanted a count above 0"),
        ({"tokens": 0}, "tokens: wanted a count above 0"),
        ({"sites": 3}, "sites: wanted names"),
        ({"sites": []}, "sites: wanted a name, or several"),
        ({"sites": [1]}, "sites: wanted names, got"),
    ],
)
def test_what_cannot_be_added_leaves_the_store_as_it_was(
    url: str, small: dict[str, bytes], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        actstore.extend(url, **asked)
    storage = Storage(url)
    assert {key: storage.read(key) for key in storage.list()} == small


def test_a_count_may_be_written_as_users_write_it(url: str) -> None:
    before = actstore.open(url).manifest.n_sequences
    grown = actstore.extend(url, tokens="3k")  # type: ignore[arg-type]
    assert grown.manifest.n_sequences > before
