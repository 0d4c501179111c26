"""Copies of stores that were extended since they were copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import actstore
from actstore.errors import ExistsError
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from actstore.sharing import copy_claim
from tests.sharing.test_copy import bytes_of, there
from tests.support import SITES, grow, make_store

THERE = there  # a fixture: a folder, memory, S3
MORE = {"blocks.1.hook_z": 8}


@pytest.fixture
def store(tmp_path: Path) -> actstore.Store:
    return make_store(tmp_path / "s", n_units=3)


def record(store: actstore.Store) -> bytes:
    text = {"format": "actstore", "content_id": store.manifest.content_id}
    return json.dumps(text).encode()


def test_an_extended_store_goes_over_what_it_was(
    store: actstore.Store, there: str
) -> None:
    actstore.copy(store.url, there)
    wider = grow(store, MORE, 3, "bfloat16")
    copied = actstore.copy(wider.url, there)
    assert copied.content_id == wider.manifest.content_id
    assert copied.skipped_objects > copied.objects // 3
    assert bytes_of(Storage(there)) == bytes_of(wider.storage)
    # two generations at once
    longer = grow(wider, {**SITES, **MORE}, 5, "bfloat16")
    longest = grow(longer, {**SITES, **MORE}, 6, "bfloat16")
    actstore.copy(longest.url, there)
    assert bytes_of(Storage(there)) == bytes_of(longest.storage)
    assert verify(there).problems == []
    assert actstore.copy(longest.url, there).was_there


def test_what_has_the_same_size_is_written_anew(
    store: actstore.Store, tmp_path: Path
) -> None:
    there = Storage(tmp_path / "there")
    actstore.copy(store.url, there.url)
    longer = grow(store, SITES, 5, "bfloat16")
    # The shape in this file has as many digits as before.
    for key in ("tokens/zarr.json", "README.md", "norms.svg", "croissant.json"):
        there.put(key, b" " * longer.storage.size(key))
    actstore.copy(longer.url, there.url)
    assert bytes_of(there) == bytes_of(longer.storage)


def test_an_earlier_state_is_not_copied_over_a_later_one(
    store: actstore.Store, tmp_path: Path
) -> None:
    actstore.copy(store.url, tmp_path / "early")
    longer = grow(store, SITES, 4, "bfloat16")
    actstore.copy(longer.url, tmp_path / "late")
    before = bytes_of(Storage(tmp_path / "late"))
    with pytest.raises(ExistsError, match="a later state of this store"):
        actstore.copy(tmp_path / "early", tmp_path / "late")
    assert bytes_of(Storage(tmp_path / "late")) == before


def test_a_copy_that_was_begun_before_goes_on_as_the_later_one(
    store: actstore.Store, there: str
) -> None:
    target = Storage(there)
    actstore.copy(store.url, there)
    target.delete("manifest.json")
    target.create("copy.json", record(store))
    longer = grow(store, SITES, 4, "bfloat16")
    copied = actstore.copy(longer.url, there)
    assert copied.skipped_objects > copied.objects // 3
    assert bytes_of(target) == bytes_of(longer.storage)


def test_a_copy_that_was_taken_over_writes_no_manifest(
    store: actstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = actstore.copy(store.url, tmp_path / "early").url
    longer = grow(store, SITES, 4, "bfloat16")
    there = str(tmp_path / "there")
    check = copy_claim.Claim.check

    def late(self: copy_claim.Claim) -> None:
        monkeypatch.setattr(copy_claim.Claim, "check", check)
        actstore.copy(longer.url, there)
        check(self)

    monkeypatch.setattr(copy_claim.Claim, "check", late)
    with pytest.raises(ExistsError, match="a later state of this store"):
        actstore.copy(early, there)
    assert bytes_of(Storage(there)) == bytes_of(longer.storage)
    # taken over, and the later one has not ended
    there = str(tmp_path / "again")

    def begun(self: copy_claim.Claim) -> None:
        self.target.put("copy.json", record(longer))
        check(self)

    monkeypatch.setattr(copy_claim.Claim, "check", begun)
    with pytest.raises(ExistsError, match="another part of it"):
        actstore.copy(early, there)
    assert "manifest.json" not in Storage(there).list()
