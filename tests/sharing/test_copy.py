"""Whole copies: equal to the byte, checked on the way, never half for whole."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore.errors import (
    CorruptError,
    ExistsError,
    NotAStoreError,
    ObjectError,
    SpecError,
    UnfinishedError,
)
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.inspect.list_stores import stores
from actstore.inspect.verify import verify
from actstore.sharing import copied_objects
from actstore.sharing.copied_objects import CopyProgress
from actstore.sharing.copy_claim import Claim
from tests.support import SITES, grow, make_store

PLACES = ("local", "memory", "s3")


def bytes_of(store: Storage) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


@pytest.fixture
def store(tmp_path: Path) -> actstore.Store:
    return make_store(
        tmp_path / "s",
        n_units=5,
        padded=True,
        dtype="int8",
        tokenizer_files={"tokenizer.json": b"{}"},
    )


@pytest.fixture(params=PLACES)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "there")
    return str(request.getfixturevalue(f"{request.param}_url")) + "/there"


def test_a_copy_is_equal_to_the_byte_there_and_back(
    store: actstore.Store, there: str, tmp_path: Path
) -> None:
    copied = actstore.copy(store.url, there)
    assert bytes_of(Storage(there)) == bytes_of(store.storage)
    assert copied.content_id == store.manifest.content_id
    assert copied.objects == len(store.storage.list()) - 1  # the manifest
    assert not copied.was_there
    assert copied.skipped_objects == 0
    assert verify(there).problems == []
    actstore.copy(there, tmp_path / "back")
    assert bytes_of(Storage(tmp_path / "back")) == bytes_of(store.storage)


def test_a_store_that_was_extended_is_copied_with_all_its_generations(
    tmp_path: Path, memory_url: str
) -> None:
    first = make_store(tmp_path / "s", n_units=3)
    wider = grow(first, {"blocks.1.hook_z": 8}, 3, "bfloat16")
    longer = grow(wider, {**SITES, "blocks.1.hook_z": 8}, 5, "bfloat16")
    actstore.copy(longer.url, memory_url)
    assert bytes_of(Storage(memory_url)) == bytes_of(longer.storage)
    assert verify(memory_url).problems == []


def test_what_is_there_is_not_copied_again(
    store: actstore.Store, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actstore.copy(store.url, there)
    # as a copy that was killed just before its end
    target = Storage(there)
    target.delete("manifest.json")
    target.delete("units/00003.json")
    target.create("copy.json", record(store).encode())
    again = actstore.copy(store.url, there)
    assert again.skipped_objects == again.objects - 1
    assert bytes_of(target) == bytes_of(store.storage)
    monkeypatch.setattr(target.__class__, "put", pytest.fail)
    assert actstore.copy(store.url, there).was_there


def record(store: actstore.Store) -> str:
    return json.dumps({"format": "actstore", "content_id": store.manifest.content_id})


def test_verify_reads_what_is_there_and_writes_anew_what_is_wrong(
    store: actstore.Store, there: str
) -> None:
    actstore.copy(store.url, there)
    target = Storage(there)
    key = "acts/blocks.1.hook_mlp_out/c/2/0"
    data = target.read(key)
    target.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    assert actstore.copy(store.url, there).was_there, "sizes are equal"
    again = actstore.copy(store.url, there, verify=True)
    assert again.skipped_objects == again.objects - 1
    assert bytes_of(target) == bytes_of(store.storage)


@pytest.mark.parametrize(
    "key",
    [
        "acts/blocks.1.hook_mlp_out/c/2/0",
        "norm/blocks.0.hook_mlp_out/c/4",
        "units/00001.stats",
        "units/00001.json",
        "blocks/00001.json",
        "columns/digests/c/0/0",
        "README.md",
    ],
)
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "longer"])
def test_a_corrupt_object_is_named_and_nothing_of_it_lands(
    store: actstore.Store, memory_url: str, key: str, how: str
) -> None:
    data = store.storage.read(key)
    if how == "gone":
        store.storage.delete(key)
    else:
        middle = len(data) // 2
        changed = {
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut": data[:-1],
            "longer": data + b" ",
        }
        store.storage.put(key, changed[how])
    if how in {"longer", "cut"} and key.startswith("blocks"):
        pytest.skip("white space in JSON means nothing")
    if how == "flipped" and key.startswith("blocks"):
        pytest.skip("under no digest: what it alone says is taken as it is")
    with pytest.raises(ObjectError) as caught:
        actstore.copy(store.url, memory_url)
    assert key in str(caught.value)
    target = Storage(memory_url)
    assert not target.exists(key)
    assert not target.exists("manifest.json")


def test_a_block_of_other_tokens_is_not_copied(
    store: actstore.Store, memory_url: str
) -> None:
    other = store.storage.read("blocks/00002.json").replace(b'"unit": 2', b'"unit": 1')
    store.storage.put("blocks/00001.json", other)
    with pytest.raises(CorruptError, match="not the block of unit 1"):
        actstore.copy(store.url, memory_url)


def test_an_unfinished_copy_says_so(
    store: actstore.Store, tmp_path: Path, there: str
) -> None:
    actstore.copy(store.url, there)
    target = Storage(there)
    target.create("copy.json", record(store).encode())
    target.delete("manifest.json")
    with pytest.raises(UnfinishedError, match="a copy of a store that has not ended"):
        actstore.open(there)
    with pytest.raises(UnfinishedError, match="a copy of a store that has not ended"):
        actstore.open(there, follow=True)
    with pytest.raises(UnfinishedError, match="a copy of a store that has not ended"):
        actstore.copy(there, tmp_path / "other")
    assert [(entry.finished, entry.text) for entry in stores(there)] == [
        (False, "unfinished copy")
    ]
    other = make_store(tmp_path / "o", n_units=2)
    with pytest.raises(ExistsError, match="a copy of another store"):
        actstore.copy(other.url, there)
    with pytest.raises(ExistsError, match="or of another part of it"):
        actstore.copy(store.url, there, units="0:2")
    actstore.copy(store.url, there)
    assert bytes_of(target) == bytes_of(store.storage)


def test_no_harvest_goes_on_with_a_copy(store: actstore.Store, tmp_path: Path) -> None:
    from actstore.harvesting.store_writer import StoreWriter

    target = Storage(tmp_path / "c")
    parts: tuple[dict[str, Any], ...] = ({}, {"units": "0:3"})
    for part in parts:
        actstore.copy(store.url, target.url, **part)
        target.create("copy.json", record(store).encode())
        target.delete("manifest.json")
        plan = actstore.format.manifest.read_plan(store.storage)
        if not part:
            target.delete("plan.json")
        with pytest.raises(ExistsError):
            StoreWriter.create(target, plan)
        for key in target.list():
            target.delete(key)


def test_other_things_at_the_destination_are_left_alone(
    store: actstore.Store, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "o", n_units=2)
    before = bytes_of(other.storage)
    with pytest.raises(ExistsError, match="another store is there"):
        actstore.copy(store.url, other.url)
    (tmp_path / "o" / "manifest.json").unlink()
    with pytest.raises(ExistsError, match="it is not empty"):
        actstore.copy(store.url, other.url)
    other.storage.put("manifest.json", before["manifest.json"])
    assert bytes_of(other.storage) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ExistsError, match="it is not empty"):
        actstore.copy(store.url, tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["a.txt"]
    with pytest.raises(NotAStoreError):
        actstore.copy(tmp_path / "nothing", tmp_path / "c")


def test_two_copies_at_once_do_no_harm(store: actstore.Store, there: str) -> None:
    if there.startswith("memory:"):
        pytest.skip("fsspec's memory cannot be listed while other threads write")
    errors: list[BaseException] = []

    def push() -> None:
        try:
            actstore.copy(store.url, there, threads=2)
        except BaseException as error:  # noqa: BLE001 (told by the main thread)
            errors.append(error)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    actstore.copy(store.url, there)  # takes away a record that one may have left
    assert bytes_of(Storage(there)) == bytes_of(store.storage)


def test_a_listing_that_lags_hides_no_copy_that_was_begun(
    store: actstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Storage(tmp_path / "there")
    assert Claim(there, store.manifest, None).begin() is False
    key = store.storage.list("acts")[0]
    there.put(key, store.storage.read(key))
    whole = Storage.list

    def lagging(self: Storage, prefix: str = "") -> list[str]:
        keys = whole(self, prefix)
        return [key for key in keys if key != object_keys.COPY]

    monkeypatch.setattr(Storage, "list", lagging)
    actstore.copy(store.url, there.url)
    assert bytes_of(there) == bytes_of(store.storage)


def test_memory_is_bounded(
    store: actstore.Store, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects in memory take no more than the bound, or one of them is alone."""
    most = 4000
    monkeypatch.setattr(copied_objects, "MOST_IN_MEMORY", most)
    lock = threading.Lock()
    sizes: list[int] = []
    in_memory: list[int] = []
    bytes_now, put_now = copied_objects.ObjectCopier._bytes, Storage.put

    def taken(self: Any, one: Any) -> bytes:
        with lock:
            sizes.append(one.size)
            in_memory.append(sum(sizes))
            assert sum(sizes) <= most or len(sizes) == 1
        data = bytes_now(self, one)
        with lock:
            sizes.remove(one.size)
        return data

    monkeypatch.setattr(copied_objects.ObjectCopier, "_bytes", taken)
    monkeypatch.setattr(Storage, "put", put_now)
    actstore.copy(store.url, memory_url)
    assert max(in_memory) > most / 2


def test_progress_ends_at_all_bytes(store: actstore.Store, memory_url: str) -> None:
    seen: list[CopyProgress] = []
    copied = actstore.copy(store.url, memory_url, progress=seen.append)
    assert [one.objects for one in seen] == list(range(1, copied.objects + 1))
    assert seen[-1].bytes == seen[-1].n_bytes == copied.bytes
    assert all(a.bytes <= b.bytes for a, b in pairwise(seen))


def test_true_features_of_toy_data_come_along(tmp_path: Path, memory_url: str) -> None:
    from actstore.importing.toy_store import make_toy_store
    from actstore.store.true_features import read_true_features

    spec = {"d": 8, "n_features": 16, "l0": 2}
    store = make_toy_store(tmp_path / "toy", spec, rows=400)
    actstore.copy(store.url, memory_url)
    assert bytes_of(Storage(memory_url)) == bytes_of(store.storage)
    assert read_true_features(actstore.open(memory_url)) is not None


@pytest.mark.real_s3
def test_between_places_of_a_real_server(
    store: actstore.Store, real_s3_url: str, tmp_path: Path
) -> None:
    first, second = f"{real_s3_url}/first", f"{real_s3_url}/second"
    actstore.copy(store.url, first)
    actstore.copy(first, second)
    assert bytes_of(Storage(second)) == bytes_of(store.storage)
    actstore.copy(first, f"{real_s3_url}/part", sites="blocks.0.*", units="1:3")
    assert verify(f"{real_s3_url}/part").problems == []
    test_two_copies_at_once_do_no_harm(store, f"{real_s3_url}/both")
    actstore.copy(second, tmp_path / "back")
    assert bytes_of(Storage(tmp_path / "back")) == bytes_of(store.storage)


def make_run(folder: Path) -> Storage:
    run = Storage(folder)
    for key, data in {
        "sae.json": b"{}",
        "weights.safetensors": b"12",
        "figures/a.svg": b"<svg/>",
        "empty": b"",
    }.items():
        run.put(key, data)
    return run


def test_a_run_is_copied_as_a_whole_its_record_last(
    tmp_path: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    order: list[str] = []
    put = Storage.put

    def noted(self: Storage, key: str, data: Any) -> None:
        order.append(key)
        put(self, key, data)

    monkeypatch.setattr(Storage, "put", noted)
    copied = actstore.copy(run.url, there)
    assert copied.content_id is None
    assert bytes_of(Storage(there)) == bytes_of(run)
    assert order[-1] == "sae.json"
    again = actstore.copy(run.url, there)
    assert again.skipped_objects == again.objects == 4
    Storage(there).put("weights.safetensors", b"21")
    assert actstore.copy(run.url, there).skipped_objects == 3
    assert bytes_of(Storage(there)) == bytes_of(run)
    # What is there may be newer than what is copied.
    run.put("eval.json", b"{}")
    Storage(there).put("eval.json", b"newer")
    with pytest.raises(ExistsError, match="may be newer"):
        actstore.copy(run.url, there)
    assert Storage(there).read("eval.json") == b"newer"
    Storage(there).delete("eval.json")
    actstore.copy(run.url, there)
    assert bytes_of(Storage(there)) == bytes_of(run)
    run.put("sae.json", b"{ }")
    with pytest.raises(ExistsError, match="another run is there"):
        actstore.copy(run.url, there)
    Storage(there).put("other", b"1")
    with pytest.raises(ExistsError, match="other is no file of the run"):
        actstore.copy(run.url, there)
    refused: tuple[dict[str, Any], ...] = (
        {"sites": "a"},
        {"units": "0"},
        {"verify": True},
    )
    for options in refused:
        with pytest.raises(SpecError, match="it is a run"):
            actstore.copy(run.url, tmp_path / "x", **options)


def test_a_copy_inside_of_what_is_copied_is_refused(
    store: actstore.Store,
) -> None:
    with pytest.raises(SpecError, match="inside of what is copied"):
        actstore.copy(store.url, f"{store.url}/copy")
    assert not Path(f"{store.url}/copy").exists()
    actstore.copy(store.url, f"{store.url}-copy")
