"""`actstore cp`, `push` and `pull` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore.format.storage import Storage
from tests.cli.conftest import Cli, cli
from tests.support import make_store

CLI = cli  # a fixture of the command lines' tests


@pytest.fixture
def store(tmp_path: Path) -> actstore.Store:
    return make_store(tmp_path / "s", n_units=3)


def test_cp_tells_what_it_copied(
    store: actstore.Store, tmp_path: Path, cli: Cli
) -> None:
    code, out, err = cli("actstore", "cp", store.url, str(tmp_path / "c"))
    assert (code, out) == (0, "")
    assert "objects" in err
    assert "MB/s" in err
    code, out, err = cli("actstore", "cp", store.url, str(tmp_path / "c"))
    assert (code, out) == (0, "")
    assert "there already" in err
    code, out, _ = cli("actstore", "cp", store.url, str(tmp_path / "d"), "--json")
    told = json.loads(out)
    assert told["content_id"] == store.manifest.content_id
    assert told["skipped_objects"] == 0
    assert not told["was_there"]


def test_push_sends_away_and_pull_fetches(
    store: actstore.Store,
    memory_url: str,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli("actstore", "push", store.url, f"{memory_url}/there")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert cli("actstore", "pull", f"{memory_url}/there")[0] == 0
    assert actstore.open(tmp_path / "there").manifest == store.manifest
    # What has a name in the catalog comes by that name.
    monkeypatch.setenv("ACTSTORE_CATALOG", f"{memory_url}/catalog")
    assert cli("actstore", "publish", f"{memory_url}/there", "named")[0] == 0
    assert cli("actstore", "pull", "catalog:named")[0] == 0
    assert actstore.open(tmp_path / "named").manifest == store.manifest
    for words in (
        ["push", store.url, "folder"],
        ["push", store.url, "file:///folder"],
        ["pull", store.url, memory_url],
        ["pull", "memory://"],
        ["pull", ".."],
    ):
        code, _, err = cli("actstore", *words)
        assert code == 1
        assert "Traceback" not in err
    assert not (tmp_path / "folder").exists()


def test_verify_of_a_copy(store: actstore.Store, tmp_path: Path, cli: Cli) -> None:
    there = Storage(tmp_path / "c")
    assert cli("actstore", "cp", store.url, there.url)[0] == 0
    key = "README.md"
    good = there.read(key)
    there.put(key, good[:-2] + b"x\n")
    assert cli("actstore", "cp", store.url, there.url)[0] == 0
    assert there.read(key) != good
    for command in ("cp", "pull"):
        there.put(key, good[:-2] + b"x\n")
        assert cli("actstore", command, store.url, there.url, "--verify")[0] == 0
        assert there.read(key) == good


def test_threads(
    store: actstore.Store, memory_url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from actstore.sharing import copied_objects

    seen = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int, **more: Any) -> None:
            seen.append(threads)
            super().__init__(threads, **more)

    monkeypatch.setattr(copied_objects, "ThreadPoolExecutor", Pool)
    for command, there in (("cp", "a"), ("push", "b")):
        words = (store.url, f"{memory_url}/{there}", "--threads", "3")
        assert cli("actstore", command, *words)[0] == 0
    assert cli("actstore", "cp", store.url, f"{memory_url}/c")[0] == 0
    assert seen == [3, 3, 16]


def test_options_of_push(store: actstore.Store, memory_url: str, cli: Cli) -> None:
    words = ("--sites", "blocks.1.*", "--units", "0:2", "--verify", "--json")
    code, out, _ = cli("actstore", "push", store.url, memory_url, *words)
    part = actstore.open(memory_url)
    assert code == 0
    assert json.loads(out)["content_id"] == part.manifest.content_id
    assert part.sites == ("blocks.1.hook_mlp_out",)
    assert part.manifest.n_units == 2
