"""Catalogs that somebody else has written, and catalogs that are not there."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import actstore
from actstore.catalog.catalog import Catalog
from actstore.catalog.record_keys import RecordKey, record_digest, record_key, tag_key
from actstore.catalog.resolve import resolved
from actstore.errors import ActstoreError, CatalogError, CorruptError, StorageError
from schemas.catalog import PublishedStore
from tests.catalog.publishers import WHEN, record
from tests.cli.conftest import Cli


def put(team: str, values: object, name: str = "a", digest: str | None = None) -> Path:
    """Write a record as its maker would, whatever it says."""
    data = json.dumps(values)
    if digest is None:
        digest = record_digest(values) if isinstance(values, dict) else "0" * 64
    path = Path(team) / RecordKey("store", name, digest).key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


def good() -> dict[str, object]:
    values: dict[str, object] = json.loads(record("a", 1).to_json())
    return values


@pytest.mark.parametrize(
    "url",
    [
        "../secret", "a/../../secret", "a//b", ".", "", "catalog:a", "simplecache::s3://b/s", "s3://b/../../x\n",
        "s3://b/s/../../x", "s3://b/..", "/a/../b",
        "s3://key:secret@b/s", "a\\..\\b", "s3://b/s?token=1", "x" * 5000,
    ],
)  # fmt: skip
def test_urls_that_lead_elsewhere(url: str, team: str) -> None:
    put(team, {**good(), "url": url})
    with pytest.raises(CorruptError):
        resolved("catalog:a", "store", Catalog())
    listing = Catalog().listing("store")
    assert listing.entries == []
    assert len(listing.problems) == 1


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"name": "b"}, "not the record that was published here"),
        ({"more": 1}, "store has no more"),
        ({"when": "zzz"}, "when"),
        ({"when": "2026-11-27T10:00:00+01:00"}, "when"),
        ({"format": "other"}, "no record of a catalog"),
        ({"format_version": 2}, "upgrade actstore"),
        ({"rows": -1}, "rows"),
        ({"content_id": "0" * 63}, "content_id"),
        ({"model": "a\x1b[2J"}, "control characters"),
        ({"model": "a\x9b31m"}, "control characters"),
        ({"by": "a\u202eb"}, "control characters"),
        ({"rows": 10**300}, "rows"),
        ({"bytes": 1 << 63}, "bytes"),
        ({"kind": "run"}, "kind"),
        ({"sites": []}, "sites"),
    ],
)
def test_records_that_cannot_be(
    changed: dict[str, object], word: str, team: str, cli: Cli
) -> None:
    put(team, {**good(), **changed})
    with pytest.raises(ActstoreError, match=word):
        resolved("catalog:a", "store", Catalog())
    # one that cannot be read does not hide the others
    Catalog().add(record("good", 1))
    code, out, err = cli("actstore", "ls")
    assert code == 0
    assert "good" in out
    assert "note: " in err


def test_a_record_at_another_place_is_told(team: str) -> None:
    put(team, good(), digest="1" * 64)
    with pytest.raises(CorruptError, match="not the record that was published here"):
        resolved("catalog:a", "store", Catalog())


def test_large_and_deep_records_are_not_parsed(team: str) -> None:
    path = put(team, good())
    path.write_text("[" * 10_000 + "]" * 10_000)
    with pytest.raises(CorruptError, match="nested"):
        resolved("catalog:a", "store", Catalog())
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(CorruptError, match="at most"):
        resolved("catalog:a", "store", Catalog())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptError, match="no regular file"):
        resolved("catalog:a", "store", Catalog())


@pytest.mark.parametrize("text", ["a" * 900_000, "?token" * 150_000, "://" * 300_000])
def test_long_texts_are_refused_at_once(text: str, team: str, cli: Cli) -> None:
    put(team, {**good(), "model": text})
    began = time.monotonic()
    code, out, err = cli("actstore", "ls")
    assert (code, out) == (0, "")
    assert err.startswith("note: ")
    assert time.monotonic() - began < 10, "seconds, where it once took minutes"


def test_what_terminals_obey_is_not_printed(team: str, cli: Cli) -> None:
    values = {**good(), "model": "[red]x[/]", "by": "[/bold]", "corpus": ":smile:"}
    put(team, {**values, "sites": ["s" * 4000]})
    folder = Path(team) / "records" / "store"
    (folder / "\x1b[31m").mkdir()
    (folder / "\x1b[31m" / "a\nb.json").write_text("{}")
    code, out, err = cli("actstore", "ls")
    assert code == 0
    assert "[red]x[/]" in out
    assert "[/bold]" in out
    assert ":smile:" in out
    assert max(map(len, out.splitlines())) < 400
    assert "\x1b" not in out + err
    assert "no record of a catalog" in err


@pytest.mark.parametrize(
    "url",
    ["reference://x", "dir://x", "nosuch://x", "zip://x.zip", "http://127.0.0.1:9/x"],
)
def test_places_that_cannot_be_opened(url: str, team: str, cli: Cli) -> None:
    put(team, {**good(), "url": url})
    code, _, err = cli("actstore", "info", "catalog:a")
    assert code == 1
    assert err.startswith("error: ")


def test_other_files_are_told_and_are_no_records(team: str, cli: Cli) -> None:
    Catalog().add(record("a", 1))
    folder = Path(team) / "records" / "store"
    (folder / "readme.txt").write_text("x")
    (folder / "a" / "notes.json").write_text("{}")
    code, out, err = cli("actstore", "ls")
    assert code == 0
    assert err.count("no record of a catalog") == 2
    assert "a" in out
    assert record_key("records/store/../a/" + "0" * 64 + ".json") is None
    assert tag_key("tags/store/a/t/1.json") is None


def test_a_tag_that_leads_nowhere_is_told(team: str, cli: Cli) -> None:
    published = Catalog()
    key, _ = published.add(record("a", 1))
    other, _ = published.add(record("a", 2))
    folder = Path(team) / "tags" / "store" / "a" / "latest"
    folder.mkdir(parents=True)
    tag = {"format": "actstore catalog", "format_version": 1, "when": WHEN}
    (folder / "00000001.json").write_text(json.dumps({**tag, "record": "f" * 64}))
    with pytest.raises(CatalogError, match="was removed"):
        resolved("catalog:a", "store", published)
    (folder / "00000002.json").write_text(json.dumps({**tag, "record": "../x"}))
    with pytest.raises(CorruptError):
        resolved("catalog:a", "store", published)
    assert cli("actstore", "ls")[0] == 0
    assert key != other


@pytest.mark.parametrize("damage", ["{", '{"format": "actstore catalog"}', ""])
def test_a_damaged_tag_is_mended_by_the_next_publishing(
    damage: str, team: str, store: str
) -> None:
    actstore.publish(store, "mini")
    (tag,) = (Path(team) / "tags" / "store" / "mini" / "latest").iterdir()
    tag.write_text(damage)
    with pytest.raises(CorruptError):
        actstore.open("catalog:mini")
    actstore.publish(store, "mini")
    assert actstore.open("catalog:mini").url == store
    assert tag.read_text() == damage, "nothing that is there is ever changed"
    actstore.unpublish("mini")
    with pytest.raises(CatalogError):
        actstore.open("catalog:mini")


def test_names_that_may_mean_several_are_refused(team: str) -> None:
    catalog = Catalog()
    catalog.add(record("a", 1))
    catalog.add(record("a", 2))
    with pytest.raises(CatalogError, match="has no latest; say which of"):
        resolved("catalog:a", "store", catalog)
    with pytest.raises(CatalogError, match="may be any of"):
        resolved("catalog:a:" + "0" * 12, "store", catalog)
    assert resolved(f"catalog:a:{2:064x}", "store", catalog).url == "s3://team/2"


def test_a_catalog_that_is_not_there(team: str, s3_url: str, cli: Cli) -> None:
    code, _, err = cli("actstore", "ls")
    assert code == 1
    assert "wanted a catalog, but there is no such folder" in err
    Path(team).mkdir()
    code, out, err = cli("actstore", "ls")
    assert (code, out, err) == (0, "", f"no such stores are published in {team}\n")
    code, out, err = cli("actstore", "runs", "--json")
    assert (code, json.loads(out)) == (0, [])
    with pytest.raises(CatalogError, match="no store of that name is published"):
        actstore.open("catalog:mini")
    code, out, err = cli("actstore", "ls", "--catalog", f"{s3_url}/nothing")
    assert (code, out, err) == (
        0,
        "",
        f"no such stores are published in {s3_url}/nothing\n",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_catalog_that_cannot_be_read(team: str) -> None:
    Catalog().add(record("a", 1))
    Path(team).chmod(0)
    try:
        with pytest.raises(StorageError):
            actstore.open("catalog:a")
    finally:
        Path(team).chmod(0o755)


def test_what_is_recorded_is_frozen() -> None:
    wanted = set(good())
    assert wanted == set(PublishedStore.model_fields)
    # Records are kept under this: if it changes, no record is found any more.
    assert (
        record_digest(good())
        == "dd28c3da331e521135951ee514eb9d7c86a9be222c551702c71379a59d55625c"
    )
