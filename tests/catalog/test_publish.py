"""Publishing: what is recorded, and what is refused."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path

import pytest

import actstore
from actstore.errors import (
    ActstoreError,
    CatalogError,
    ObjectError,
    SpecError,
    UnfinishedError,
)
from actstore.format.storage import Storage
from schemas.catalog import has_secret
from tests.cli.conftest import Cli
from tests.support import make_store

SECRET = "pl4nted"


def files(folder: str) -> dict[str, bytes]:
    """All files below a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_who_published_it_is_recorded_or_left_out(
    cli: Cli, team: str, store: str
) -> None:
    words = ["actstore", "publish", store]
    code, out, _ = cli(*words, "a", "--json")
    assert (code, json.loads(out)["by"]) == (0, getpass.getuser())
    code, out, _ = cli(*words, "b", "--by", "the team", "--json")
    assert (code, json.loads(out)["by"]) == (0, "the team")
    code, out, _ = cli(*words, "c", "--anonymous", "--json")
    assert (code, json.loads(out)["by"]) == (0, None)
    code, out, _ = cli(*words, "c")
    assert out.startswith("catalog:c:latest  ")
    assert out.endswith("(it was published before)\n")
    code, _, err = cli(*words, "d", "--by", "x", "--anonymous")
    assert code == 1
    assert "--by and --anonymous: give one of them" in err


def test_the_same_again_is_the_same_record(team: str, store: str) -> None:
    first = actstore.publish(store, "mini", by="a")
    before = files(team)
    again = actstore.publish(store, "mini", by="b")
    assert files(team) == before
    assert again.was_there
    assert not first.was_there
    # whoever published it first is who published it
    assert again.record == first.record


def test_other_content_is_another_version(
    team: str, store: str, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    make_store(other, n_units=3)
    first = actstore.publish(store, "mini").record.content_id
    second = actstore.publish(other, "mini").record.content_id
    assert actstore.open("catalog:mini").url == other
    assert actstore.open(f"catalog:mini:{first[:12]}").url == store
    assert actstore.open(f"catalog:mini:{second}").url == other
    # published again, the first one is what the tag leads to
    actstore.publish(store, "mini")
    assert actstore.open("catalog:mini").url == store
    # and a name may be given another tag
    actstore.publish(f"catalog:mini:{second[:12]}", "mini:stable")
    assert actstore.open("catalog:mini:stable").url == other
    found = {one.name: one.tags for one in actstore.published()}
    assert found == {
        "catalog:mini:latest": ("latest",),
        "catalog:mini:stable": ("stable",),
    }


def test_what_has_not_ended_is_not_published(team: str, tmp_path: Path) -> None:
    url = str(tmp_path / "half")
    make_store(url, n_units=2)
    (tmp_path / "half" / "manifest.json").unlink()
    with pytest.raises(UnfinishedError):
        actstore.publish(url, "half")
    with pytest.raises(ActstoreError, match="wanted a store"):
        actstore.publish(str(tmp_path / "nothing"), "nothing")
    assert not Path(team).exists()


def test_a_store_that_does_not_open_is_not_published(team: str, store: str) -> None:
    next(Path(store).glob("columns/rows/c/*")).write_bytes(b"")
    with pytest.raises(ObjectError):
        actstore.publish(store, "mini")
    assert not Path(team).exists()


def test_a_run_is_published_with_its_metrics(team: str, trained: str, cli: Cli) -> None:
    code, out, _ = cli("actstore", "publish", trained, "sae", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["kind"] == "run"
    assert record["sae"] == "topk"
    assert record["metrics"] is None
    assert cli("trainer", "eval", "catalog:sae", "--split", "train")[0] == 0
    # its metrics are new, and its content is the same
    again = json.loads(cli("actstore", "publish", trained, "sae", "--json")[1])
    assert again["content_id"] == record["content_id"]
    found = json.loads((Path(trained) / "eval.json").read_text())
    assert again["metrics"]["fvu"] == found["pooled"]["fvu"]
    assert again["store_content_id"] == found["content_id"]


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/store", f"https://h/store?X-Amz-Signature={SECRET}", f"https://h/s?a=b&token={SECRET}",
        f"gs://b/s?access_key={SECRET}", f"https://{SECRET}@h/store", f"https://h/s?sig={SECRET}", f"https://h/s#auth={SECRET}",
    ],
)  # fmt: skip
def test_secrets_are_refused_and_not_repeated(
    url: str, team: str, store: str, cli: Cli
) -> None:
    assert has_secret(url)
    for words in (
        ["publish", url, "a"],
        ["publish", store, "a", "--catalog", url],
        ["publish", store, "a", "--by", url],
    ):
        code, out, err = cli("actstore", *words)
        assert code == 1, words
        assert SECRET not in out + err
    assert not any(SECRET.encode() in data for data in files(team).values())


@pytest.mark.parametrize("url", ["s3://b/s", "/a b/c@d", "hf://datasets/a/b@main/c"])
def test_other_urls_have_no_secret(url: str) -> None:
    assert not has_secret(url)


def test_credentials_of_options_are_not_recorded(
    team: str, s3_url: str, s3_server: str
) -> None:
    make_store(f"{s3_url}/store", n_units=2)
    options = {"key": SECRET, "secret": SECRET, "endpoint_url": s3_server}
    actstore.publish(f"{s3_url}/store", "mini", options=options)
    assert not any(SECRET.encode() in data for data in files(team).values())
    assert actstore.open("catalog:mini").url == f"{s3_url}/store"


def test_what_lies_inside_the_catalog_moves_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(str(tmp_path / "team" / "stores" / "mini"), n_units=2)
    monkeypatch.setenv("ACTSTORE_CATALOG", str(tmp_path / "team"))
    record = actstore.publish(str(tmp_path / "team" / "stores" / "mini"), "mini").record
    assert record.url == "stores/mini"
    shutil.move(tmp_path / "team", tmp_path / "moved")
    monkeypatch.setenv("ACTSTORE_CATALOG", str(tmp_path / "moved"))
    opened = actstore.open("catalog:mini")
    assert opened.url == str(tmp_path / "moved" / "stores" / "mini")


def test_a_folder_of_this_machine_in_a_bucket_is_told(
    store: str, s3_url: str, cli: Cli
) -> None:
    code, _, err = cli("actstore", "publish", store, "a", "--catalog", f"{s3_url}/team")
    assert code == 0
    assert "is a folder of this machine, and the catalog is not" in err


def test_records_and_names_in_a_bucket(s3_url: str) -> None:
    make_store(f"{s3_url}/stores/mini", n_units=2)
    published = actstore.publish(f"{s3_url}/stores/mini", "mini", catalog=s3_url)
    assert published.record.url == "stores/mini"
    assert [one.url for one in actstore.published(catalog=s3_url)] == [
        f"{s3_url}/stores/mini"
    ]
    keys = Storage(s3_url).list("records") + Storage(s3_url).list("tags")
    assert len(keys) == 2


def test_a_tag_that_looks_like_a_content_id_is_refused(team: str, store: str) -> None:
    with pytest.raises(CatalogError, match="cannot look like a content id"):
        actstore.publish(store, "mini:" + "a" * 12)
    with pytest.raises(SpecError, match="publish: by: wanted text"):
        actstore.publish(store, "mini", by="")
