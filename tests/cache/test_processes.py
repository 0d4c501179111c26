"""Eight processes share a tiny cache and are killed at random instants: the bound holds
at every instant, the bytes are right, and nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from filelock import FileLock

from actstore.cache.local_cache import LocalCache
from tests.cache.known_bytes import SIZE, Reader

PROCESSES = 8
ROOT = Path(__file__).parents[2]


def started(folder: Path, seed: int) -> subprocess.Popen[bytes]:
    words = ["-W", "error", "-m", "tests.cache.reading_process"]
    return subprocess.Popen(
        [sys.executable, *words, str(folder), str(SIZE), str(seed)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def bytes_in(folder: Path) -> int:
    """The bytes of all files below a folder.

    A file that is finished meanwhile has two names in turn: it is counted once.
    """
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            name = path.name.partition(".")[0] if path.parent != folder else path.name
            sizes[name] = max(sizes.get(name, 0), path.lstat().st_size)
    return sum(sizes.values())


class Watcher:
    """Measures a folder all the time, and keeps the largest size that it saw."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self.looks = 0
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        # Names of a folder are not listed at one instant. With the lock nothing is
        # removed and nothing reserved meanwhile, while files go on being written.
        lock = FileLock(self._folder / "ledger.lock", poll_interval=0.001)
        while not self._over.is_set():
            with lock:
                self.most = max(self.most, bytes_in(self._folder))
            self.looks += 1
            time.sleep(0.003)


def used_bytes(disk: Path) -> int:
    """What the kernel reckons for all files of a disk, at one instant."""
    info = os.statvfs(disk)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def kill_at_random(folder: Path, seconds: float, seed: int) -> int:
    """Run processes for a while, killing and replacing some; return how many died."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    running = [started(folder, i) for i in range(PROCESSES)]
    died = 0
    try:
        while time.monotonic() < until:
            time.sleep(rng.random() * 0.4)
            victim = rng.randrange(PROCESSES)
            # one that was replaced a moment ago may not have begun
            running[victim].kill()
            running[victim].communicate(timeout=60)
            died += 1
            running[victim] = started(folder, PROCESSES + died)
        for process in running:
            _, errors = process.communicate(timeout=60)  # its input ends here
            assert process.returncode == 0, errors.decode()
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return died


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk in memory where root can mount one, else None."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(mount)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        yield None
        return
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize(
    "seconds", [4, pytest.param(60, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_the_bound_holds_while_processes_are_killed(
    tmp_path: Path, seconds: float
) -> None:
    folder = tmp_path / "cache"
    LocalCache(folder, SIZE).close()
    with Watcher(folder) as watcher:
        died = kill_at_random(folder, seconds, seed=3)
    assert died > seconds
    assert watcher.looks > 10
    assert SIZE / 4 < watcher.most <= SIZE
    check_what_is_left(folder)


def test_the_bound_holds_by_the_kernels_reckoning(disk: Path | None) -> None:
    if disk is None:
        pytest.skip("only root can mount a disk")
    folder = disk / "cache"
    LocalCache(folder, SIZE).close()
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, used_bytes(disk))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        kill_at_random(folder, 4, seed=4)
    finally:
        over.set()
        watcher.join()
    assert SIZE / 4 < most <= SIZE
    check_what_is_left(folder)


def check_what_is_left(folder: Path) -> None:
    """What the dead left is cleared, and the ledger agrees with the files."""
    reader = Reader(LocalCache(folder))
    status = reader.cache.status()
    assert status.fillings == 0
    assert not list((folder / "files").glob("*.filling"))
    assert len(list((folder / "files").iterdir())) == status.files
    assert len(list((folder / "processes").iterdir())) == 1
    reader.read(range(20))
    assert reader.fetches(range(20)) == []
    reader.cache.close()
