"""`actstore rm` and `unpublish`: what goes, what stays, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import actstore
import trainer
from actstore.catalog.catalog import Catalog
from actstore.errors import (
    ActstoreError,
    CatalogError,
    NotAStoreError,
    UnfinishedError,
)
from actstore.format.storage import Storage
from tests.cli.conftest import Cli
from tests.support import make_store

KILLED = """
import os, signal, sys
import actstore
from actstore.format.storage import Storage

left = int(sys.argv[2])
delete = Storage.delete

def deleted(self, key):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    delete(self, key)

Storage.delete = deleted
import actstore.publishing.remove_objects as module
module.THREADS = 1
actstore.remove(sys.argv[1])
"""


def test_only_the_stores_own_objects_go(team: str, store: str, tmp_path: Path) -> None:
    (Path(store) / "notes.txt").write_text("mine")
    other = Path(store) / "acts" / "mine" / "c" / "0" / "0"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    beyond = Path(store) / "units" / "00099.json"
    beyond.write_text("{}")
    actstore.publish(store, "a")
    actstore.publish(store, "b:v1")
    removal = actstore.remove("catalog:a")
    assert removal.url == store
    assert removal.names == ("catalog:a", "catalog:b")
    left = {path for path in Path(store).rglob("*") if path.is_file()}
    assert left == {Path(store) / "notes.txt", other, beyond}
    assert actstore.published() == []
    assert tmp_path.exists()


def test_nothing_is_left_of_a_store(store: str, s3_url: str) -> None:
    actstore.remove(store)
    assert not Path(store).exists()
    url = f"{s3_url}/store"
    make_store(url, n_units=2)
    Storage(s3_url).put("other/file", b"x")
    actstore.remove(url)
    assert Storage(s3_url).list() == ["other/file"]


def test_an_extended_and_an_imported_store_go_whole(tmp_path: Path) -> None:
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": 1024,
        "dtype": "int8",
    }
    url = str(tmp_path / "grown")
    actstore.harvest(spec, url)
    actstore.extend(url, sites="blocks.1.hook_mlp_out")
    actstore.extend(url, tokens=512)
    actstore.remove(url)
    assert not Path(url).exists()


def test_a_store_that_runs_need_is_not_removed(
    team: str, store: str, trained: str, tmp_path: Path, cli: Cli
) -> None:
    actstore.publish(store, "mini")
    actstore.publish(trained, "sae")
    before = sorted(Path(store).rglob("*"))
    for what in (store, "catalog:mini"):
        code, _, err = cli("actstore", "rm", what, "--yes")
        assert code == 1
        assert "published runs were trained from it: catalog:sae" in err
    # a copy has the same content, and is as good as it
    shutil.copytree(store, tmp_path / "copy")
    with pytest.raises(CatalogError, match="published runs"):
        actstore.remove(str(tmp_path / "copy"))
    assert sorted(Path(store).rglob("*")) == before
    assert cli("actstore", "unpublish", "sae")[0] == 0
    assert cli("actstore", "rm", "catalog:mini", "--yes")[0] == 0
    assert not Path(store).exists()
    # the run itself is where it was
    assert trainer.load(trained).n_latents == 16


def test_it_asks(store: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = cli("actstore", "rm", store)
    assert code == 1
    assert "answer in a terminal, or give --yes" in err
    answers = iter([False, True])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: next(answers))
    code, _, err = cli("actstore", "rm", store)
    assert (code, err) == (1, "nothing was removed\n")
    assert (Path(store) / "manifest.json").exists()
    code, out, _ = cli("actstore", "rm", store, "--json")
    assert json.loads(out)["url"] == store
    assert code == 0
    assert not Path(store).exists()


def test_what_is_no_finished_store_is_refused(team: str, store: str) -> None:
    (Path(store) / "manifest.json").unlink()
    with pytest.raises(UnfinishedError, match="actstore gc"):
        actstore.remove(store)
    with pytest.raises(NotAStoreError):
        actstore.remove(f"{store}/units")
    with pytest.raises(CatalogError):
        actstore.remove("catalog:nothing")
    assert (Path(store) / "plan.json").exists()


def test_a_replaced_store_is_not_removed_by_its_old_name(team: str, store: str) -> None:
    actstore.publish(store, "mini")
    shutil.rmtree(store)
    make_store(store, n_units=3)
    with pytest.raises(CatalogError, match="was replaced"):
        actstore.remove("catalog:mini")
    assert actstore.open(store).manifest.n_units == 3


@pytest.mark.parametrize("n_gone", [0, 1, 2, 3, 10, 30, 40])
def test_a_removal_that_is_killed_goes_on(n_gone: int, team: str, store: str) -> None:
    actstore.publish(store, "mini")
    words = [sys.executable, "-c", KILLED, store, str(n_gone)]
    killed = subprocess.run(words, check=False, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    if n_gone > 0:
        # It is never taken for whole, by its URL or by its name.
        with pytest.raises(ActstoreError):
            actstore.open(store)
        with pytest.raises(CatalogError, match="is gone"):
            actstore.open("catalog:mini")
    # What a harvest would take for committed has all its objects.
    for path in Path(store).glob("units/*.json"):
        for key in json.loads(path.read_text())["objects"]:
            assert (Path(store) / key).exists()
    actstore.remove("catalog:mini")
    assert not Path(store).exists()
    assert actstore.published() == []
    with pytest.raises(NotAStoreError):
        actstore.remove(store)


def test_names_are_taken_out_one_by_one(
    team: str, store: str, tmp_path: Path, cli: Cli
) -> None:
    other = str(tmp_path / "other")
    make_store(other, n_units=3)
    actstore.publish(store, "mini")
    first = actstore.publish(store, "mini:v1").record.content_id
    actstore.publish(other, "mini")
    actstore.publish(other, "mini:v2")
    # a tag of several: only the tag
    assert actstore.unpublish("mini:v2") == ["catalog:mini:v2"]
    assert actstore.open("catalog:mini").url == other
    # the last tag of it: what it leads to as well, and `latest` goes back
    assert actstore.unpublish("mini:latest") == ["catalog:mini:latest"]
    assert actstore.open("catalog:mini").url == store
    code, out, _ = cli("actstore", "unpublish", f"mini:{first[:12]}", "--json")
    assert code == 0
    assert json.loads(out) == ["catalog:mini:latest", "catalog:mini:v1"]
    with pytest.raises(CatalogError):
        actstore.open("catalog:mini")
    with pytest.raises(CatalogError, match="nothing of that name"):
        actstore.unpublish("mini")
    assert Catalog().listing("store").entries == []
    # a number is never used again: what others still read stays true
    actstore.publish(store, "mini")
    assert actstore.open("catalog:mini").url == store
    assert Path(store).exists()


def test_a_store_and_a_run_may_have_one_name(
    team: str, store: str, trained: str, cli: Cli
) -> None:
    actstore.publish(store, "mini")
    actstore.publish(trained, "mini")
    assert actstore.open("catalog:mini").url == store
    assert trainer.load("catalog:mini").url == trained
    code, _, err = cli("actstore", "unpublish", "mini")
    assert code == 1
    assert "a store and a run have that name; give --kind store or --kind run" in err
    assert cli("actstore", "unpublish", "mini", "--kind", "run")[0] == 0
    assert actstore.open("catalog:mini").url == store
    code, _, err = cli("actstore", "unpublish", "mini", "--kind", "other")
    assert code == 1
    assert "wanted store or run" in err
