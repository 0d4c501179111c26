"""Many who publish at once, and listings that lag: nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.catalog.catalog import Catalog
from actstore.catalog.record_keys import TagKey
from actstore.catalog.resolve import resolved
from actstore.catalog.tags import history, last_number, move_tag, tagged, tags_of
from actstore.format.storage import Storage
from schemas.catalog import TagRecord
from tests.catalog.publishers import WHEN, publish, record

PUBLISHERS = 32


def check(catalog: Catalog, publishers: int) -> None:
    """Nothing that was published is lost, and the tag has a place for each move."""
    listing = catalog.listing("store")
    assert listing.problems == []
    found = {(one.record.name, one.record.rows) for one in listing.entries}
    numbers = range(publishers)
    assert found == {("shared", n) for n in numbers} | {
        (f"own-{n}", n) for n in numbers
    }
    moves = history(catalog, "store", "shared", "latest")
    shared = {e.key.digest for e in listing.entries if e.record.name == "shared"}
    assert len(moves) == publishers
    assert set(moves) == shared
    assert tagged(catalog, "store", "shared", "latest") == moves[-1]
    for n in numbers:
        assert resolved(f"catalog:own-{n}", "store", catalog).url == f"s3://team/{n}"


def publish_in_processes(url: str, folder: Path, publishers: int) -> None:
    """Let as many processes publish at once."""
    folder.mkdir()
    words = [sys.executable, "-m", "tests.catalog.publishers", url]
    processes = [
        subprocess.Popen([*words, str(n), str(folder)]) for n in range(publishers)
    ]
    try:
        while len(list(folder.iterdir())) < publishers:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        (folder / "go").touch()
        assert [process.wait(120) for process in processes] == [0] * publishers
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_processes_lose_nothing_on_a_disk(tmp_path: Path) -> None:
    url = str(tmp_path / "team")
    publish_in_processes(url, tmp_path / "there", PUBLISHERS)
    check(Catalog(url), PUBLISHERS)


@pytest.mark.real_s3
def test_processes_lose_nothing_on_a_real_server(
    real_s3_url: str, tmp_path: Path
) -> None:
    publish_in_processes(real_s3_url, tmp_path / "there", PUBLISHERS)
    check(Catalog(real_s3_url), PUBLISHERS)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_threads_lose_nothing(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "team")
    if place == "s3":
        url = f"{request.getfixturevalue('s3_url')}/team"
    Catalog(url)
    with ThreadPoolExecutor(PUBLISHERS) as pool:
        list(pool.map(lambda n: publish(Catalog(url), n), range(PUBLISHERS)))
    check(Catalog(url), PUBLISHERS)


class Lagging(Storage):
    """A place whose listing does not show what was written last."""

    unseen = 0

    def list(self, prefix: str = "") -> list[str]:
        keys = super().list(prefix)
        return keys[: max(0, len(keys) - self.unseen)]


@given(
    moves=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    lags=st.lists(st.integers(0, 8), min_size=9, max_size=9),
)
@settings(deadline=None, max_examples=30)
def test_a_listing_that_lags_loses_no_move(
    moves: list[int], lags: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    catalog = Catalog(str(tmp_path_factory.mktemp("team")))
    storage = Lagging(catalog.url)
    catalog.storage = storage
    digests = [f"{n:064x}" for n in range(4)]
    wanted: list[str] = []
    for move, lag in zip(moves, lags, strict=False):
        storage.unseen = lag
        move_tag(catalog, "store", "a", "t", TagRecord(record=digests[move], when=WHEN))
        if not wanted or wanted[-1] != digests[move]:
            wanted.append(digests[move])
    storage.unseen = lags[-1]
    assert history(catalog, "store", "a", "t") == wanted
    assert tagged(catalog, "store", "a", "t") == wanted[-1]
    assert last_number(catalog, "store", "a", "t") == len(wanted)


def test_a_publisher_that_is_killed_leaves_what_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(str(tmp_path))
    key, _ = catalog.add(record("a", 1))
    # Killed here, it has no tag, and is found where it is the only one.
    assert resolved("catalog:a", "store", catalog).entry.key == key
    key_2, is_new = catalog.add(record("a", 1))
    assert (key_2, is_new) == (key, False)
    move_tag(catalog, "store", "a", "latest", TagRecord(record=key.digest, when=WHEN))
    assert tags_of(catalog, "store", "a") == {"latest": key.digest}


def test_a_tag_gives_up_where_all_numbers_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(str(tmp_path))

    def taken(*_: Any) -> bool:
        return False

    monkeypatch.setattr("actstore.catalog.tags.MOST_TRIES", 3)
    monkeypatch.setattr(catalog.storage, "create", taken)
    with pytest.raises(Exception, match="was moved by others 3 times"):
        move_tag(catalog, "store", "a", "t", TagRecord(record="0" * 64, when=WHEN))
    assert not catalog.storage.exists(TagKey("store", "a", "t", 1).key)
