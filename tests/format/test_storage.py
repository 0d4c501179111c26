"""One contract for every place: local disk, memory, an S3 server."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format.storage import Storage


@pytest.fixture(
    params=[
        "local",
        "memory",
        "s3",
        pytest.param("real_s3", marks=pytest.mark.real_s3),
    ]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "place"))
    return Storage(request.getfixturevalue(f"{request.param}_url") + "/place")


def test_put_read_list_delete(storage: Storage) -> None:
    assert storage.is_empty()
    storage.put("a/b", [b"hello ", b"world"])
    storage.put("a/c", b"x")
    storage.put("top", b"")
    assert not storage.is_empty()
    assert storage.read("a/b") == b"hello world"
    assert (
        storage.size("a/b"),
        storage.exists("a/b"),
        storage.exists("a"),
        storage.exists("no"),
    ) == (
        11,
        True,
        False,
        False,
    )
    assert storage.list() == ["a/b", "a/c", "top"]
    assert storage.list("a") == ["a/b", "a/c"]
    assert storage.list("nowhere") == []
    assert list(storage.folders()) == ["a"]
    storage.put("a/b", b"replaced")
    assert storage.read("a/b") == b"replaced"
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.list("a") == ["a/c"]


def test_a_listing_tells_sizes_and_times(storage: Storage) -> None:
    before = time.time()
    storage.put("a/b", b"hello")
    storage.put("top", b"")
    listed = storage.objects()
    assert [(found.key, found.bytes) for found in listed] == [("a/b", 5), ("top", 0)]
    assert [found.key for found in storage.objects("a")] == ["a/b"]
    assert storage.objects("nowhere") == []
    for found in listed:
        assert found.modified is not None
        assert before - 5 < found.modified < time.time() + 5


def test_ranges(storage: Storage) -> None:
    storage.put("k", bytes(range(100)))
    ranges = [(10, 5), (0, 1), (-4, 4), (-100, 3)]
    assert storage.read_ranges("k", ranges) == [
        bytes(range(10, 15)),
        b"\0",
        bytes(range(96, 100)),
        bytes(range(3)),
    ]


def test_ranges_behind_the_end_are_cut_off(storage: Storage) -> None:
    if storage.url.startswith("memory:"):
        pytest.skip("fsspec's memory file system takes no ranges behind the end")
    storage.put("k", bytes(range(10)))
    ranges = [(8, 5), (10, 1), (50, 3), (2, 2), (-3, 3)]
    parts = [bytes(part) for part in storage.read_ranges("k", ranges)]
    assert parts == [b"\x08\x09", b"", b"", b"\x02\x03", b"\x07\x08\x09"]


def test_a_limit_bounds_what_is_read(storage: Storage) -> None:
    storage.put("k", b"12345")
    storage.put("empty", b"")
    assert storage.read("k", 5) == b"12345"
    assert storage.read("empty", 0) == b""
    with pytest.raises(CorruptError, match="at most"):
        storage.read("k", 4)
    assert storage.digest("k", 5)[0] == 5


def test_keys_of_all_kinds(storage: Storage) -> None:
    keys = ["a b/ü%20+", "blocks.0.hook/c/0/0", "#?&=", "x'y\"z"]
    for key in keys:
        storage.put(key, key.encode())
        assert not storage.create(key, b"other")
    assert storage.list() == sorted(keys)
    for key in keys:
        assert storage.read(key) == key.encode()
        assert [bytes(part) for part in storage.read_ranges(key, [(0, 2)])] == [
            key.encode()[:2]
        ]
        assert storage.exists(key)
        storage.delete(key)
    assert storage.list() == []


def test_a_child_and_its_parent_see_the_same(storage: Storage) -> None:
    storage.child("a").put("b", b"x")
    assert storage.read("a/b") == b"x"
    assert storage.child("a").is_folder()
    assert not storage.child("b").is_folder()
    assert not storage.child("a").is_empty()
    assert storage.child("b").is_empty()


def test_missing_objects(storage: Storage) -> None:
    for call in (
        storage.read,
        storage.size,
        lambda key: storage.read_ranges(key, [(0, 1)]),
    ):
        with pytest.raises(ObjectError, match="no such object"):
            call("not/there")


def test_create_has_one_winner(storage: Storage) -> None:
    for key in ("one", "deep/two"):
        with ThreadPoolExecutor(8) as pool:
            won = list(
                pool.map(
                    lambda i, key=key: storage.create(key, bytes([i]) * 50), range(8)
                )
            )
        assert won.count(True) == 1
        assert storage.read(key) == bytes([won.index(True)]) * 50
        assert not storage.create(key, b"late")


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage.put("k", b"old")
    monkeypatch.setattr(os, "fsync", full)
    for write in (storage.put, storage.create):
        with pytest.raises(StorageError, match=r"disk is full.*free some space"):
            write("k", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
    assert storage.read("k") == b"old"


def test_no_such_bucket_and_no_such_protocol(s3_url: str) -> None:
    with pytest.raises((StorageError, ObjectError)):
        Storage("s3://no-such-bucket-here").put("k", b"x")
    with pytest.raises(StorageError, match="nosuch"):
        Storage("nosuch://x")
