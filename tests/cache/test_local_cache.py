"""What a cache promises: right bytes, each fetched once, in bounds, and nothing else
touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actstore.cache import local_cache
from actstore.cache.cache_folder import CacheFolder, cost
from actstore.cache.claimed_folder import TAG
from actstore.cache.ledger import LEDGER_BYTES, SMALLEST_BYTES
from actstore.cache.local_cache import LocalCache
from actstore.errors import CacheWarning, FormatVersionError, SpecError, StorageError
from tests.cache.conftest import Open
from tests.cache.known_bytes import SIZE, Reader, bytes_of, key_of, size_of


def file_of(folder: Path, number: int) -> Path:
    return folder / "files" / key_of(number).hex()


def ledger_of(folder: Path) -> Path:
    (path,) = folder.glob("ledger-*.sqlite")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_what_was_read_is_not_fetched_again(opened: Open) -> None:
    reader = opened()
    assert reader.fetches([3, 1, 2]) == [1, 2, 3]
    assert reader.fetches([2, 4, 1]) == [4]
    # another process
    assert opened().fetches([1, 2, 3, 4]) == []


def test_an_empty_read_asks_for_nothing(opened: Open) -> None:
    assert opened().fetches([]) == []


def test_a_key_that_comes_twice_is_fetched_once(opened: Open) -> None:
    assert opened().fetches([1, 1, 2, 1]) == [1, 2]


def test_it_stays_in_bounds_and_what_was_used_longest_ago_goes(opened: Open) -> None:
    reader = opened()
    numbers = list(range(100))
    reader.read([0])
    for number in numbers[1:]:
        reader.read([number])
        reader.read([0])  # used all the time
        assert reader.cache.status().reckoned <= SIZE
    assert reader.fetches([0, 99, 98, 97]) == []
    assert reader.fetches([1, 2]) == [1, 2]


def test_one_read_larger_than_the_cache(opened: Open, folder: Path) -> None:
    reader = opened()
    reader.read(range(100))
    assert 0 < reader.cache.status().files < 100
    assert sum(map(len, contents(folder).values())) <= SIZE


def test_bytes_that_are_not_worth_keeping_are_given_back_and_not_kept(
    opened: Open,
) -> None:
    cache = opened().cache
    key = key_of(1)
    for _ in range(2):
        assert cache.read([key], [3], lambda _: [b"abc"], lambda _: False) == [b"abc"]
        assert cache.read([key], [3], lambda _: [b"abcd"]) == [b"abcd"]
    assert cache.status().files == 0
    assert cache.status().fillings == 0
    assert cache.read([key], [3], lambda _: [b"abc"]) == [b"abc"]
    assert cache.read([key], [3], lambda _: []) == [b"abc"]


def test_an_error_comes_through_and_frees_what_was_reserved(
    opened: Open, folder: Path
) -> None:
    cache = opened().cache

    def fetch(_: list[int]) -> list[bytes]:
        assert cache.status().fillings == 2
        raise KeyError("no network")

    for _ in range(3):
        with pytest.raises(KeyError, match="no network"):
            cache.read([key_of(1), key_of(2)], [5, 5], fetch)
    assert cache.status().fillings == 0
    assert cache.status().reckoned == LEDGER_BYTES
    assert not list((folder / "files").iterdir())


@pytest.mark.parametrize("how", ["cut", "flipped", "of another key", "empty"])
def test_a_damaged_file_is_fetched_again_and_told_of_once(
    opened: Open, folder: Path, how: str
) -> None:
    opened().read([1, 2, 3])
    for number in (1, 2):
        path = file_of(folder, number)
        data = bytearray(path.read_bytes())
        if how == "cut":
            del data[-1:]
        elif how == "flipped":
            data[len(data) // 2] ^= 1
        elif how == "of another key":
            data[:] = file_of(folder, 3).read_bytes()[: len(data)].ljust(len(data))
        else:
            data.clear()
        path.write_bytes(data)
    reader = opened()
    with pytest.warns(CacheWarning, match="was damaged") as told:
        assert reader.fetches([1, 2, 3]) == [1, 2]
    assert len(told) == 1
    assert opened().fetches([1, 2, 3]) == []


def test_files_that_someone_removes_are_fetched_again(
    opened: Open, folder: Path
) -> None:
    reader = opened()
    reader.read(range(8))
    for number in range(4):
        file_of(folder, number).unlink()
    assert reader.fetches(range(8)) == [0, 1, 2, 3]
    status = reader.cache.status()
    assert status.files == 8
    assert status.reckoned == LEDGER_BYTES + sum(cost(size_of(n)) for n in range(8))


@pytest.mark.parametrize("how", ["removed", "garbage", "cut", "empty", "another's"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_ledger_is_made_again_from_the_files(
    opened: Open, folder: Path, how: str, alive: bool
) -> None:
    first = opened()
    first.read(range(30))
    if not alive:
        first.cache.close()
    path = ledger_of(folder)
    if how == "removed":
        path.unlink()
    elif how == "garbage":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif how == "cut":
        os.truncate(path, 700)
    elif how == "empty":
        os.truncate(path, 0)
    else:
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE theirs (x)")
        other.close()
    second = opened()
    assert second.fetches(range(30)) == []
    for number in range(30, 120, 6):
        second.read(range(number, number + 6))
        if alive:
            first.read(range(number + 3, number + 9))
        assert second.cache.status().reckoned <= SIZE
        assert sum(map(len, contents(folder).values())) <= SIZE


def test_nothing_but_cache_files_is_ever_removed(
    opened: Open, folder: Path, tmp_path: Path
) -> None:
    opened().cache.close()
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / key_of(1).hex()
    precious.write_bytes(b"precious")
    files = folder / "files"
    strange = [
        folder / "notes.txt",
        folder / "ledger.sqlite",
        folder / "ledger-0123456789abcdef.sqlite.bak",
        files / "notes.txt",
        files / key_of(2).hex()[:-1],
        files / key_of(2).hex().upper(),
        files / f"{key_of(3).hex()}.100.{'0' * 31}g.filling",
        folder / "processes" / "readme",
    ]
    for path in strange:
        path.write_bytes(b"mine")
    (files / key_of(4).hex()).mkdir()
    (files / key_of(4).hex() / "inside").write_bytes(b"mine")
    (files / key_of(5).hex()).symlink_to(precious)
    (files / key_of(6).hex()).symlink_to(outside)
    reader = opened()
    reader.read(range(10, 120))
    reader.cache.clear()
    assert reader.cache.status().files == 0
    for path in strange:
        assert path.read_bytes() == b"mine"
    assert (files / key_of(4).hex() / "inside").read_bytes() == b"mine"
    assert precious.read_bytes() == b"precious"
    assert list(outside.iterdir()) == [precious]


def test_a_link_in_place_of_a_file_is_not_followed(
    opened: Open, folder: Path, tmp_path: Path
) -> None:
    reader = opened()
    reader.read([1])
    kept = file_of(folder, 1)
    outside = tmp_path / "outside"
    kept.rename(outside)
    before = outside.read_bytes()
    kept.symlink_to(outside)
    reader = opened()
    with pytest.warns(CacheWarning, match="cannot be read"):
        assert reader.fetches([1]) == [1]
    assert not kept.is_symlink()
    assert outside.read_bytes() == before


@pytest.mark.parametrize("name", ["files", "processes"])
def test_a_folder_that_is_a_link_is_refused(
    opened: Open, folder: Path, tmp_path: Path, name: str
) -> None:
    opened().cache.close()
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(SpecError, match=f"{name} is a link"):
        LocalCache(folder, SIZE)


def test_a_ledger_that_is_a_link_is_refused(
    opened: Open, folder: Path, tmp_path: Path
) -> None:
    opened().cache.close()
    path = ledger_of(folder)
    path.rename(tmp_path / "theirs.sqlite")
    path.symlink_to(tmp_path / "theirs.sqlite")
    with pytest.raises(SpecError, match="no regular file"):
        LocalCache(folder, SIZE)


def test_a_folder_with_something_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("...")
    with pytest.raises(SpecError, match=r"not empty \(thesis.tex"):
        LocalCache(folder, SIZE)
    assert list(folder.iterdir()) == [folder / "thesis.tex"]


def test_a_file_and_a_newer_cache_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="wanted a folder"):
        LocalCache(tmp_path / "file", SIZE)
    folder.mkdir()
    text = "Signature: 8a477f597d28d172789f06886806bc55\n# actstore cache, version 2\n"
    (folder / TAG).write_text(text)
    with pytest.raises(FormatVersionError, match="newer"):
        LocalCache(folder, SIZE)


def test_a_size_that_is_too_small_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match=f"at least {SMALLEST_BYTES:,}"):
        LocalCache(folder, SMALLEST_BYTES - 1)
    assert not folder.exists()


def test_the_size_stays_until_another_one_is_given(opened: Open) -> None:
    first = opened(4 * SIZE)
    first.read(range(100))
    assert first.cache.status().files == 100
    first.cache.close()
    assert opened(None).cache.size == 4 * SIZE
    with pytest.warns(CacheWarning, match="for all of them"):
        smaller = opened(SIZE)
    assert smaller.cache.status().reckoned <= SIZE
    assert smaller.fetches([99]) == []


def test_a_new_cache_takes_half_of_what_is_free(opened: Open, folder: Path) -> None:
    size = opened(None).cache.size
    free = CacheFolder(folder).free_bytes()
    assert abs(size - free / 2) < free / 4


def test_a_full_disk_is_told_of_once_and_nothing_is_lost(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened()
    reader.read([1])
    write = os.write
    left = [150_000]

    def full(fd: int, data: Any) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = write(fd, data[: left[0]])
        left[0] -= n
        return n

    monkeypatch.setattr(os, "write", full)
    with pytest.warns(CacheWarning, match="no space left") as told:
        assert [reader.fetches(some) for some in ([2, 3], [5, 1])] == [[2, 3], [5]]
    assert len(told) == 1
    monkeypatch.undo()
    assert not list((folder / "files").glob("*.filling"))
    # after a rest it keeps again
    monkeypatch.setattr(reader.cache._desk, "_rests_until", 0)
    assert reader.fetches([5]) == [5]
    assert reader.fetches([5]) == []


def test_a_folder_that_is_taken_away_is_told_of_once(
    opened: Open, folder: Path, tmp_path: Path
) -> None:
    reader = opened()
    reader.read([1])
    folder.rename(tmp_path / "moved")
    with pytest.warns(CacheWarning, match="reading goes on without it") as told:
        assert [reader.fetches([n]) for n in range(2, 6)] == [[2], [3], [4], [5]]
    assert len(told) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a directory; choose another folder"):
        LocalCache(tmp_path / "file" / "cache", SIZE)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    """A disk of 12 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("only root can mount a disk")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_disk_that_is_smaller_than_the_cache(tiny_disk: Path) -> None:
    reader = Reader(LocalCache(tiny_disk / "cache", 10 * SIZE))
    with pytest.warns(CacheWarning, match="reading goes on without it") as told:
        reader.read(range(100))
    assert len(told) == 1
    assert reader.fetches([1, 2, 3]) == []
    reader.cache.close()


def test_threads_fetch_each_key_once(opened: Open) -> None:
    reader = opened()
    together = threading.Barrier(8)

    def read(_: int) -> None:
        together.wait()
        for first in range(0, 30, 5):
            reader.read(range(first, first + 5))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert sorted(reader.fetched) == list(range(30))


def test_a_child_after_a_fork_goes_on_and_leaves_the_parent_alone(
    opened: Open, folder: Path
) -> None:
    code = f"""
import os, sys
from actstore.cache.local_cache import LocalCache
from tests.cache.known_bytes import Reader
reader = Reader(LocalCache({str(folder)!r}, {SIZE}))
reader.read([1, 2])
child = os.fork()
if child == 0:
    good = reader.fetches([1, 2, 3]) == [3]
    owners = len(os.listdir({str(folder / "processes")!r})) == 2
    reader.cache.close()
    os._exit(0 if good and owners else 1)
assert os.waitpid(child, 0)[1] == 0
assert reader.fetches([1, 2, 3, 4]) == [4]
assert len(os.listdir({str(folder / "processes")!r})) == 1
reader.cache.close()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    assert opened().fetches([1, 2, 3, 4]) == []


def test_who_waits_too_long_fetches_himself(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cache, "PATIENCE_S", 0.3)
    slow, other = opened().cache, opened()
    begun, over = threading.Event(), threading.Event()

    def fetch(_: list[int]) -> list[bytes]:
        begun.set()
        assert over.wait(60)
        return [bytes_of(1)]

    thread = threading.Thread(target=slow.read, args=([key_of(1)], [size_of(1)], fetch))
    thread.start()
    assert begun.wait(60)
    assert other.fetches([1, 2]) == [1, 2]
    over.set()
    thread.join()
    assert other.fetches([1, 2]) == []


def test_a_lock_that_is_held_for_ever_stops_nobody(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened()
    reader.read([1])
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, 2);"
        " print('held', flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", code, str(folder / "ledger.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        ledger = reader.cache._desk.opened()
        monkeypatch.setattr(ledger._database.lock, "timeout", 0.2)
        with pytest.warns(CacheWarning, match="holds its lock"):
            assert reader.fetches([1, 2]) == [2]
        assert reader.fetches([1, 2]) == [2]
        holder.kill()
    monkeypatch.setattr(reader.cache._desk, "_rests_until", 0)
    assert reader.fetches([1, 2]) == [2]
    assert reader.fetches([1, 2]) == []


def test_one_that_never_delivers_is_waited_for_once(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stopped process has begun may be many files."""
    monkeypatch.setattr(local_cache, "PATIENCE_S", 1.0)
    stopped, other = opened().cache, opened()
    numbers = range(8)
    begun, over = threading.Event(), threading.Event()

    def fetch(_: list[int]) -> list[bytes]:
        begun.set()
        assert over.wait(60)
        return [bytes_of(n) for n in numbers]

    keys, sizes = [key_of(n) for n in numbers], [size_of(n) for n in numbers]
    thread = threading.Thread(target=stopped.read, args=(keys, sizes, fetch))
    thread.start()
    assert begun.wait(60)
    waited: list[float] = []
    sleep = time.sleep

    def counted(seconds: float) -> None:
        waited.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", counted)
    for n in numbers:
        assert other.fetches([n]) == [n]
    over.set()
    thread.join()
    assert sum(waited) < 2.5  # once with patience, then a tenth of a second for each


def test_a_clock_that_ran_ahead_pins_nothing(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e9)
    reader.read(range(10))
    reader.cache.status()
    monkeypatch.setattr(time, "time", now)
    for first in range(10, 200, 5):
        reader.read(range(first, first + 5))
    left = [n for n in range(10) if (folder / "files" / key_of(n).hex()).exists()]
    assert left == []


@pytest.mark.parametrize("reckoned", [-(10**12), "NULL", "'many'"])
def test_a_ledger_that_reckons_nonsense_is_made_again(
    opened: Open, folder: Path, reckoned: object
) -> None:
    reader = opened()
    reader.read(range(20))
    with contextlib.closing(sqlite3.connect(ledger_of(folder))) as rows:
        rows.execute("PRAGMA ignore_check_constraints = ON")
        with contextlib.suppress(sqlite3.IntegrityError):
            rows.execute(f"UPDATE cache SET reckoned = {reckoned}")
        rows.execute("UPDATE cache SET size = 99999999999999")
        rows.commit()
    other = opened(None)
    assert other.cache.size == SIZE
    for first in range(20, 120, 5):
        reader.read(range(first, first + 5))
        assert sum(map(len, contents(folder).values())) <= SIZE


@pytest.mark.parametrize("text", ["", "1", "-5", "much", "16777215"])
def test_a_size_that_cannot_be_read_is_not_taken(
    opened: Open, folder: Path, text: str
) -> None:
    opened().cache.close()
    (folder / "size").write_text(text)
    assert opened(None).cache.size == SIZE


def test_users_who_may_write_there_can_share_it(opened: Open, folder: Path) -> None:
    before = os.umask(0)
    try:
        reader = opened()
        reader.read(range(5))
        for path in folder.rglob("*"):
            # locks are taken of files that are opened for reading
            if path.parent.name != "processes":
                assert path.stat().st_mode & 0o066 == 0o066, path.name
    finally:
        os.umask(before)
