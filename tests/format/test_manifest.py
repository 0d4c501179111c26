"""Manifests and plans: which are read, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actstore.errors import (
    ActstoreError,
    CorruptError,
    FormatVersionError,
    NotAStoreError,
    ObjectError,
    UnfinishedError,
)
from actstore.format.manifest import parse_manifest, read_manifest, read_plan
from actstore.format.manifest_checks import CARD_FILES
from actstore.format.storage import Storage
from tests.support import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    folder = tmp_path_factory.mktemp("manifest") / "store"
    return make_store(folder, {"a": 4}, n_units=2, unit_sequences=1).storage


def copy_of(store: Storage, folder: Path, key: str, **update: Any) -> Storage:
    """A folder with this file of the store alone, changed."""
    values = {**json.loads(store.read(key, 1 << 20)), **update}
    (folder / key).write_text(json.dumps(values))
    return Storage(str(folder))


def refused(error: type[ActstoreError], message: str, call: Any, *args: Any) -> None:
    with pytest.raises(error) as problem:
        call(*args)
    assert type(problem.value) is error
    assert str(problem.value) == message


def test_a_manifest_is_read(store: Storage) -> None:
    manifest = read_manifest(store)
    assert manifest.n_units == 2
    data = store.read("manifest.json", 1 << 20)
    assert parse_manifest(data, "here") == manifest
    plan = read_plan(store)
    assert plan.sites == manifest.sites
    assert read_plan(store, 0) == plan
    with pytest.raises(ObjectError):
        read_plan(store, 1)


def test_a_folder_without_a_manifest(store: Storage, tmp_path: Path) -> None:
    empty = Storage(str(tmp_path))
    refused(
        NotAStoreError,
        f"{empty.url}: wanted a store, but there is no manifest.json; check the URL"
        " (`actstore ls` lists stores)",
        read_manifest,
        empty,
    )
    begun = copy_of(store, tmp_path, "plan.json")
    refused(
        UnfinishedError,
        f"{begun.url}: this harvest (or import) has not ended; run the same command"
        " again to go on with it",
        read_manifest,
        begun,
    )


READERS = [("manifest.json", read_manifest), ("plan.json", read_plan)]


@pytest.mark.parametrize(("key", "read"), READERS)
def test_what_is_not_actstores(
    key: str, read: Any, store: Storage, tmp_path: Path
) -> None:
    other = copy_of(store, tmp_path, key, format="other")
    message = f"{other.url}: its {key} is not one of actstore's"
    refused(NotAStoreError, message, read, other)
    (tmp_path / key).write_text('["actstore"]')
    refused(NotAStoreError, message, read, other)
    (tmp_path / key).write_text("{")
    with pytest.raises(CorruptError) as error:
        read(other)
    assert str(error.value).startswith(f"{other.url}/{key}: not valid JSON: ")


@pytest.mark.parametrize(("key", "read"), READERS)
@pytest.mark.parametrize(
    ("version", "minor", "newer"),
    [
        (1, 0, False),
        (1, 1, False),
        (1, 2, False),
        (1, 3, True),
        (2, 0, True),
        (0, 0, True),
        (True, 0, True),
        (None, 0, True),
    ],
)
def test_versions(
    version: Any,
    minor: int,
    newer: bool,
    key: str,
    read: Any,
    store: Storage,
    tmp_path: Path,
) -> None:
    other = copy_of(store, tmp_path, key, format_version=version, format_minor=minor)
    if newer:
        refused(
            FormatVersionError,
            f"{other.url}: format version {version}.{minor}, this actstore reads 1.0"
            " to 1.2; upgrade actstore to read it",
            read,
            other,
        )
        return
    if minor < 2 and key == "manifest.json":  # they had no such files
        files = json.loads(store.read(key, 1 << 20))["files"]
        for name in CARD_FILES:
            del files[name]
        other = copy_of(other, tmp_path, key, files=files)
    assert read(other).format_minor == minor


@pytest.mark.parametrize(("key", "read"), READERS)
def test_a_version_without_a_minor_is_0(
    key: str, read: Any, store: Storage, tmp_path: Path
) -> None:
    other = copy_of(store, tmp_path, key, format_version=2)
    values = json.loads((tmp_path / key).read_text())
    del values["format_minor"]
    (tmp_path / key).write_text(json.dumps(values))
    with pytest.raises(FormatVersionError, match=r"format version 2\.0, this"):
        read(other)
    values |= {"format_version": 1, "format_minor": "x"}
    (tmp_path / key).write_text(json.dumps(values))
    with pytest.raises(CorruptError) as error:
        read(other)
    schema = "StoreManifest" if key == "manifest.json" else "Plan"
    assert str(error.value).startswith(f"{other.url}/{key}: not a valid {schema}: ")


@pytest.mark.parametrize(("key", "read"), READERS)
def test_what_cannot_be(key: str, read: Any, store: Storage, tmp_path: Path) -> None:
    layout = json.loads(store.read(key, 1 << 20))["layout"]
    other = copy_of(store, tmp_path, key, layout={**layout, "n_units": 9})
    with pytest.raises(CorruptError) as error:
        read(other)
    assert str(error.value) == (
        f"{other.url}/{key}: layout.n_units 9: 2 sequences make 2; it was changed or"
        " badly written: copy the store again"
    )
