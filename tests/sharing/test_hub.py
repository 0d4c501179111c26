"""Stores on the Hugging Face hub, against a stand-in for it on 127.0.0.1."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.errors import ExistsError, StorageError
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from actstore.sharing import hub_storage
from actstore.sharing.hub_storage import HubStorage, place
from tests.sharing.hub_stand_in import TOKEN, Hub
from tests.support import make_store

URL = "hf://datasets/me/acts"
# The hub's client uses its own HTTP library in a way of before.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfFileSystem, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    # they are read from the environment when the package is imported
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HfFileSystem.clear_instance_cache()
    disable_progress_bars()
    yield server
    enable_progress_bars()
    HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> actstore.Store:
    return make_store(tmp_path / "s", n_units=6, padded=True)


def bytes_of(store: Storage) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


def test_a_store_is_a_data_set_of_few_commits(
    hub: Hub, store: actstore.Store, tmp_path: Path
) -> None:
    copied = actstore.copy(store.url, URL)
    files = dict(hub.repos["me/acts"])
    del files[".gitattributes"]
    assert files == bytes_of(store.storage)
    assert hub.commits[0]["n"] == 1  # what claims the place
    assert len(hub.commits) <= 4
    assert hub.created[0]["type"] == "dataset"
    assert "private" in str(hub.created[0])
    assert copied.content_id == store.manifest.content_id
    actstore.copy(URL, tmp_path / "back")
    assert bytes_of(Storage(tmp_path / "back")) == bytes_of(store.storage)


def test_it_is_opened_verified_and_streamed_from_there(
    hub: Hub, store: actstore.Store
) -> None:
    actstore.copy(store.url, URL)
    there = actstore.open(URL)
    assert verify(there).problems == []
    site = there.sites[0]
    assert np.array_equal(
        there.read(site, slice(0, 99)), store.read(site, slice(0, 99))
    )
    rows = np.concatenate([batch.row for batch in there.stream(batch=64, sites=site)])
    assert np.array_equal(np.sort(rows), there.rows("train"))


def test_a_part_goes_to_a_folder_of_a_data_set(hub: Hub, store: actstore.Store) -> None:
    actstore.copy(store.url, f"{URL}/parts/first", sites="blocks.0.*", units="1:3")
    assert all(
        key.startswith("parts/first/") or key == ".gitattributes"
        for key in hub.repos["me/acts"]
    )
    assert verify(f"{URL}/parts/first").problems == []


def test_batches_are_small_where_memory_is(
    hub: Hub, store: actstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_storage, "UPLOAD_BYTES", 20_000)
    monkeypatch.setattr(hub_storage, "COMMIT_OBJECTS", 30)
    actstore.copy(store.url, URL)
    assert 3 < len(hub.commits) < 12
    assert verify(URL).problems == []


def test_a_copy_that_was_broken_off_goes_on(
    hub: Hub, store: actstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_storage, "COMMIT_OBJECTS", 20)
    commit, n_commits = HubStorage._commit_changes, 0

    def breaking(self: HubStorage, *args: Any) -> None:
        nonlocal n_commits
        n_commits += 1
        if n_commits == 3:
            raise StorageError("broken off")
        commit(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(HubStorage, "_commit_changes", breaking)
        with pytest.raises(StorageError, match="broken off"):
            actstore.copy(store.url, URL)
    there = set(hub.repos["me/acts"])
    assert "copy.json" in there
    assert "manifest.json" not in there
    again = actstore.copy(store.url, URL)
    assert 20 <= again.skipped_objects < again.objects
    files = dict(hub.repos["me/acts"])
    del files[".gitattributes"]
    assert files == bytes_of(store.storage)


def test_another_store_is_refused(
    hub: Hub, store: actstore.Store, tmp_path: Path
) -> None:
    actstore.copy(store.url, URL)
    other = make_store(tmp_path / "o", n_units=2)
    before = dict(hub.repos["me/acts"])
    with pytest.raises(ExistsError, match="another store is there"):
        actstore.copy(other.url, URL)
    hub.repos["me/acts"].pop("manifest.json")
    with pytest.raises(ExistsError, match="it is not empty"):
        actstore.copy(other.url, f"{URL}")
    hub.repos["me/acts"]["manifest.json"] = before["manifest.json"]
    assert hub.repos["me/acts"] == before


def test_a_place_is_claimed_by_one(hub: Hub) -> None:
    first, second = place(URL), place(URL)
    assert first.create("copy.json", b"1")
    assert not second.create("copy.json", b"2")
    assert hub.repos["me/acts"]["copy.json"] == b"1"
    # another one commits between the look and the commit
    head = HubStorage._head

    def outpaced(self: HubStorage, api: Any) -> str | None:
        found = head(self, api)
        hub.heads["me/acts"] += 1
        return found

    HubStorage._head, kept = outpaced, head  # type: ignore[method-assign]
    try:
        assert not place(URL).create("claim", b"3")
    finally:
        HubStorage._head = kept  # type: ignore[method-assign]
    assert "claim" not in hub.repos["me/acts"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "log in"),
        (403, "may not write there"),
        (404, "no such repository"),
        (429, "too many requests"),
    ],
)
def test_refusals_say_what_to_do_and_never_the_token(
    hub: Hub, store: actstore.Store, status: int, text: str
) -> None:
    hub.refusal = status
    with pytest.raises(
        StorageError, match=f"(?s)answered {status}: .*{text}"
    ) as caught:
        actstore.copy(store.url, URL)
    error: BaseException | None = caught.value
    while error is not None:
        assert TOKEN not in f"{error!r} {error}"
        error = error.__cause__


def test_without_a_token_and_without_a_network(
    hub: Hub, store: actstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(
        "huggingface_hub.utils._auth._get_token_from_file", lambda: None
    )
    with pytest.raises(StorageError, match=r"answered 401: .*log in"):
        actstore.copy(store.url, URL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    HfFileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"HF_ENDPOINT|check the"):
        actstore.copy(store.url, URL)


def test_the_token_is_nowhere(hub: Hub, store: actstore.Store) -> None:
    actstore.copy(store.url, URL)
    assert not any(TOKEN.encode() in one for one in hub.repos["me/acts"].values())
    assert TOKEN not in str(hub.commits) + repr(place(URL))


@pytest.mark.parametrize("url", ["hf://me/acts", "hf://spaces/me/x", "hf://datasets/x"])
def test_places_on_the_hub(url: str) -> None:
    with pytest.raises(StorageError, match="wanted hf://datasets/OWNER/NAME"):
        place(url)


def test_a_bucket_is_written_in_batches(
    store: actstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client, as far as it is asked, and a dict for its bucket."""
    files: dict[str, bytes] = {}
    calls: list[int] = []

    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_bucket(self, name: str, *, private: bool, exist_ok: bool) -> None:
            assert (name, private, exist_ok) == ("me/acts", True, True)

        def batch_bucket_files(
            self, name: str, *, add: list[tuple[bytes, str]], delete: list[str]
        ) -> None:
            assert name == "me/acts"
            calls.append(len(add))
            files.update({key: data for data, key in add})
            for key in delete:
                del files[key]

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(Storage, "exists", lambda _, key: f"a/{key}" in files)
    monkeypatch.setattr(Storage, "read", lambda _, key, limit=None: files[f"a/{key}"])
    monkeypatch.setattr(
        Storage, "list", lambda _, prefix="": [key[2:] for key in files]
    )
    target = place("hf://buckets/me/acts/a")
    assert isinstance(target, HubStorage)
    assert target.create("copy.json", b"1")
    assert not target.create("copy.json", b"2")
    for i in range(2500):
        target.put(f"x/{i}", b"12")
    target.put("manifest.json", b"3")
    assert target.read("x/7") == b"12"
    target.delete("copy.json")
    assert len(target.list()) == 2501
    assert len(calls) == 5
