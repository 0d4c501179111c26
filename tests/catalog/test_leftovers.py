"""`actstore gc` and `du`: what is old enough goes, and nothing else ever does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import s3fs

import actstore
from actstore.errors import NotAStoreError, SpecError
from actstore.format.s3_objects import S3Objects
from actstore.format.storage import ListedObject, PendingUpload, Storage
from actstore.publishing import leftovers
from tests.cli.conftest import Cli
from tests.support import make_store

DAY_S = 86_400
TEMPORARY = f".tmp-{'0' * 32}"


def age(folder: str | Path, days: float) -> None:
    """Let all files below a folder look as old as that."""
    then = time.time() - days * DAY_S
    for path in Path(folder).rglob("*"):
        os.utime(path, (then, then))


@pytest.fixture
def half(tmp_path: Path) -> str:
    """A harvest that was stopped."""
    url = str(tmp_path / "half")
    make_store(url, n_units=2)
    (tmp_path / "half" / "manifest.json").unlink()
    return url


def test_an_abandoned_harvest_goes_and_others_stay(
    half: str, store: str, tmp_path: Path, cli: Cli
) -> None:
    (Path(half) / "notes.txt").write_text("mine")
    (tmp_path / "plan.txt").write_text("mine")
    (tmp_path / "copy.json").write_text("{}")
    age(tmp_path, 2)
    before = {path: path.read_bytes() for path in Path(store).rglob("*.json")}
    code, out, err = cli("actstore", "gc", str(tmp_path), "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    assert (found["url"], found["what"], found["removable"]) == (half, "harvest", True)
    assert (Path(half) / "plan.json").exists()
    code, out, err = cli("actstore", "gc", str(tmp_path))
    assert out.startswith(f"would go  {half}  harvest")
    assert "1 other files in it stay" in out
    assert "give --delete" in err
    code, out, err = cli("actstore", "gc", str(tmp_path), "--delete")
    assert (code, err) == (0, "")
    assert out.startswith(f"removed   {half}")
    assert [path.name for path in Path(half).rglob("*")] == ["notes.txt"]
    assert (tmp_path / "copy.json").exists()
    assert {path: path.read_bytes() for path in Path(store).rglob("*.json")} == before
    assert actstore.verify(store).problems == []


@pytest.mark.parametrize(
    ("days", "older_than", "goes"),
    [(0.9, 1, False), (1.1, 1, True), (1.1, 2, False), (-5, 1, False), (400, 30, True)],
)
def test_nothing_young_goes(
    days: float, older_than: float, goes: bool, half: str, cli: Cli
) -> None:
    age(half, days)
    words = ["--delete", "--older-than", str(older_than)]
    code, out, _ = cli("actstore", "gc", half, *words)
    assert code == 0
    assert out.startswith("removed" if goes else "stays")
    assert Path(half).exists() != goes


def test_one_young_object_keeps_all(half: str) -> None:
    age(half, 10)
    (Path(half) / "anything").write_text("new")
    (found,) = actstore.leftovers(half, delete=True)
    assert not found.removable
    assert (Path(half) / "plan.json").exists()


def test_less_than_a_day_is_refused(half: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="wanted at least 1 day"):
        actstore.leftovers(half, older_than=0.5)
    with pytest.raises(NotAStoreError):
        actstore.leftovers(str(tmp_path / "nothing"), delete=True)
    assert not (tmp_path / "nothing").exists()


def test_a_clock_that_is_ahead_does_not_make_young_things_old(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3_url}/half"
    make_store(url, n_units=2)
    Storage(url).delete("manifest.json")
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 10 * DAY_S)
    (found,) = actstore.leftovers(s3_url, delete=True)
    assert not found.removable
    assert Storage(url).exists("plan.json")
    assert not [one for one in Storage(s3_url).objects() if ".tmp-" in one.key]


def test_where_no_ages_are_told_nothing_goes(
    half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(half, 10)
    listed = Storage.objects

    def without_times(self: Storage, prefix: str = "") -> list[ListedObject]:
        return [one._replace(modified=None) for one in listed(self, prefix)]

    monkeypatch.setattr(Storage, "objects", without_times)
    (found,) = actstore.leftovers(half, delete=True)
    assert (found.days, found.removable) == (None, False)
    assert (Path(half) / "plan.json").exists()


def test_a_harvest_that_goes_on_meanwhile_stays(
    half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(half, 10)
    listed = Storage.objects
    looks = []

    def then_written(self: Storage, prefix: str = "") -> list[ListedObject]:
        found = listed(self, prefix)
        looks.append(prefix)
        if len(looks) == 1:
            (Path(half) / "units" / "00001.json").touch()
        return found

    monkeypatch.setattr(Storage, "objects", then_written)
    (found,) = actstore.leftovers(half, delete=True)
    assert not found.removable
    assert found.note == "it was written to meanwhile, and stays"
    assert (Path(half) / "plan.json").exists()


def test_temporary_files_go_and_what_only_looks_so_stays(
    store: str, tmp_path: Path
) -> None:
    old = [
        Path(store) / "acts" / TEMPORARY,
        tmp_path / f".doctor-{'a' * 32}",
    ]
    others = [tmp_path / ".tmp-mine", Path(store) / ".doctor-notes", tmp_path / "x.tmp"]
    for path in (*old, *others):
        path.write_bytes(b"12345")
    found = actstore.leftovers(str(tmp_path), delete=True)
    assert [one.removable for one in found] == [False, False]
    age(tmp_path, 2)
    found = actstore.leftovers(str(tmp_path), delete=True)
    assert [(one.what, one.bytes) for one in found] == [("temporary file", 5)] * 2
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in others)
    assert actstore.verify(store).problems == []


def test_copies_and_removals_that_have_not_ended(half: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    Path(half).rename(copy)
    (copy / "plan.json").unlink()
    mark = {"format": "actstore", "content_id": "0" * 64}
    (copy / "copy.json").write_text(json.dumps(mark))
    (copy / "mine.txt").write_text("mine")
    removal = tmp_path / "removal"
    removal.mkdir()
    (removal / "removing.json").write_text('{"format": "actstore", "removing": true}')
    age(tmp_path, 2)
    found = actstore.leftovers(str(tmp_path), delete=True)
    assert [(one.what, one.removable) for one in found] == [
        ("copy", True),
        ("removal", True),
    ]
    assert [path.name for path in copy.rglob("*")] == ["mine.txt"]
    assert not removal.exists()


def test_a_plan_that_cannot_be_read_keeps_its_folder(half: str) -> None:
    (Path(half) / "plan.json").write_text("{")
    age(half, 10)
    (found,) = actstore.leftovers(half, delete=True)
    assert not found.removable
    assert "it is left" in str(found.note)
    assert (Path(half) / "tokens").exists()


def test_usage_adds_up(team: str, store: str, half: str, cli: Cli) -> None:
    folder = Path(store).parent
    on_disk = sum(p.stat().st_size for p in Path(store).rglob("*") if p.is_file())
    by_site = {one.name: one.bytes for one in actstore.usage(store)}
    assert sum(by_site.values()) == on_disk
    assert set(actstore.open(store).sites) < set(by_site)
    by_store = {one.name: one.bytes for one in actstore.usage(str(folder))}
    assert by_store[store] == on_disk
    assert half in by_store
    actstore.publish(store, "mini")
    code, out, _ = cli("actstore", "du", "--json")
    assert code == 0
    (used,) = json.loads(out)
    assert used["bytes"] == actstore.open(store).manifest.n_bytes
    code, out, _ = cli("actstore", "du", store)
    assert code == 0
    assert out.splitlines()[-1].endswith("total")
    with pytest.raises(NotAStoreError):
        actstore.usage(str(folder / "nothing"))


def begun(url: str, key: str) -> None:
    """Begin to send an object in parts, and be killed after the first."""
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    fs = s3fs.S3FileSystem()
    name = {"Bucket": bucket, "Key": f"{folder}/{key}".lstrip("/")}
    upload = fs.call_s3("create_multipart_upload", **name)["UploadId"]
    body = b"x" * (5 << 20)
    fs.call_s3("upload_part", **name, UploadId=upload, PartNumber=1, Body=body)


@pytest.mark.parametrize(
    "url_of", ["s3_url", pytest.param("real_s3_url", marks=pytest.mark.real_s3)]
)
def test_uploads_that_were_left_go(
    url_of: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of stores, once they are a day old; those of others stay."""
    url = f"{request.getfixturevalue(url_of)}/team"
    make_store(f"{url}/store", n_units=2)
    site = actstore.open(f"{url}/store").sites[0]
    shard = f"store/acts/{site}/c/1/0"
    Storage(url).put("web/manifest.json", b"{}")
    # what is called as a store's is none without a store there, nor is what it has not
    others = [
        "backups/monday.tar",
        "home/features.safetensors",
        "store/acts/other/c/1/0",
        "web/acts/site/c/1/0",
    ]
    if url_of == "real_s3_url":  # moto knows no such keys
        others.append("store/acts/a\nb/c/0")
    for key in (shard, *others):
        begun(url, key)
    begun(f"{url}-others", shard)
    found = actstore.leftovers(url, delete=True)
    assert sorted((one.url, one.what, one.bytes, one.removable) for one in found) == [
        (f"{url}/{key}", "upload", 5 << 20, False) for key in sorted((shard, *others))
    ]
    assert len(Storage(url).uploads()) == 1 + len(others)
    monkeypatch.setattr(leftovers, "DAY_S", 0.1)
    time.sleep(1.1)  # the place tells whole seconds
    for delete in (False, True):
        found = actstore.leftovers(url, delete=delete)
        gone = [one.url for one in found if one.removable]
        assert gone == [f"{url}/{shard}"]
        notes = {one.note for one in found if not one.removable}
        assert notes == {"it is no object of a store, and stays"}
    assert [one.key for one in Storage(url).uploads()] == sorted(others)
    assert len(Storage(f"{url}-others").uploads()) == 1
    assert actstore.verify(f"{url}/store").problems == []


def test_many_uploads_come_in_pages(s3_url: str) -> None:
    names = [f"acts/site/c/{i}/0" for i in range(5)]
    for name in names:
        begun(s3_url, name)
    remote = Storage(s3_url)._there
    assert isinstance(remote, S3Objects)
    asked = remote.fs.call_s3
    remote.fs.call_s3 = lambda operation, **request: asked(
        operation, **request, **({"MaxUploads": 2} if "uploads" in operation else {})
    )
    found = remote.uploads(s3_url.removeprefix("s3://"))
    assert sorted(one.key.partition("/")[2] for one in found) == names


def test_a_place_that_does_not_list_uploads_is_named(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(f"{s3_url}/store", n_units=2)

    def refused(self: S3Objects, path: str) -> list[PendingUpload]:
        raise PermissionError(f"{path}: Access Denied")

    monkeypatch.setattr(S3Objects, "uploads", refused)
    (found,) = actstore.leftovers(s3_url)
    assert (found.what, found.removable) == ("uploads", False)
    assert "cannot be listed" in str(found.note)
