"""Whatever is done to a cache, and in whichever order: bytes are right, it stays in
bounds, and the ledger reckons what there is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actstore.cache.cache_folder import HEAD_BYTES, cost
from actstore.cache.ledger import LEDGER_BYTES
from actstore.cache.local_cache import LocalCache
from actstore.errors import CacheWarning
from tests.cache.known_bytes import SIZE, Reader

NUMBERS = st.integers(0, 60)


class CacheMachine(RuleBasedStateMachine):
    """Two processes' views of one folder, and hands that meddle with its files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "cache"
        self.size = SIZE
        self.readers = [Reader(LocalCache(self.folder, SIZE)) for _ in range(2)]

    def teardown(self) -> None:
        for reader in self.readers:
            reader.cache.close()
        shutil.rmtree(self.folder.parent)

    def files(self) -> list[Path]:
        return sorted((self.folder / "files").iterdir())

    @rule(
        which=st.integers(0, 1),
        numbers=st.lists(NUMBERS, max_size=12),
        again=st.booleans(),
    )
    def read(self, which: int, numbers: list[int], again: bool) -> None:
        with warnings.catch_warnings():
            # of files that were damaged
            warnings.simplefilter("ignore", CacheWarning)
            self.readers[which].read(numbers)
            if again and len(numbers) < 6:
                assert self.readers[which].fetches(numbers) == []

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.readers[which].cache.close()
        self.readers[which] = Reader(LocalCache(self.folder))
        assert self.readers[which].cache.size == self.size

    @rule(which=st.integers(0, 1), mebibytes=st.integers(16, 24))
    def resize(self, which: int, mebibytes: int) -> None:
        self.size = mebibytes << 20
        self.readers[which].cache.resize(self.size)

    @rule(chosen=st.integers(0, 1000), length=st.integers(0, 400_000))
    def damage_a_file(self, chosen: int, length: int) -> None:
        """Someone damages a file; it is compared with its head by who comes next."""
        files = self.files()
        if files:
            path = files[chosen % len(files)]
            data = bytearray(path.read_bytes()[:length])
            if data:
                data[length % len(data)] ^= 1
            path.write_bytes(data)
            for which in range(2):
                self.reopen(which)

    @rule(chosen=st.integers(0, 1000))
    def remove_a_file(self, chosen: int) -> None:
        files = self.files()
        if files:
            files[chosen % len(files)].unlink()

    @rule()
    def remove_the_ledger(self) -> None:
        for path in self.folder.glob("ledger-*"):
            path.unlink()

    @rule(length=st.integers(0, 20_000))
    def damage_the_ledger(self, length: int) -> None:
        for path in self.folder.glob("ledger-*.sqlite"):
            path.write_bytes(os.urandom(length))

    @rule(which=st.integers(0, 1))
    def clear(self, which: int) -> None:
        self.readers[which].cache.clear()
        assert self.files() == []

    @invariant()
    def it_is_in_bounds(self) -> None:
        n_bytes = sum(path.stat().st_size for path in self.files())
        assert n_bytes + LEDGER_BYTES <= self.size
        status = self.readers[0].cache.status()
        assert status.reckoned <= status.size
        assert status.fillings == 0
        reckoned = sum(cost(p.stat().st_size - HEAD_BYTES) for p in self.files())
        # Files that someone removed are reckoned until it is noticed.
        assert reckoned <= status.reckoned - LEDGER_BYTES


CacheMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None
)
TestCache = CacheMachine.TestCase
