"""Bytes that tests keep in a cache: what belongs to a number is the same everywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence

from blake3 import blake3

from actstore.cache.ledger import LEDGER_BYTES
from actstore.cache.local_cache import LocalCache

# 16 MiB, half of which is the ledger's: some 40 files of these sizes.
SIZE = 2 * LEDGER_BYTES
LEAST, MOST = 100_000, 300_000


def size_of(number: int) -> int:
    """How many bytes belong to a number."""
    return random.Random(number).randrange(LEAST, MOST)


def bytes_of(number: int) -> bytes:
    """The bytes of a number."""
    return random.Random(-1 - number).randbytes(size_of(number))


def key_of(number: int) -> bytes:
    """The key of its bytes."""
    return blake3(f"number {number}".encode()).digest()


class Reader:
    """Reads numbers through a cache, and notes which were fetched."""

    def __init__(self, cache: LocalCache) -> None:
        self.cache = cache
        self.fetched: list[int] = []

    def read(self, numbers: Sequence[int]) -> None:
        """Read some numbers; their bytes must be the right ones."""

        def fetch(positions: list[int]) -> list[bytes]:
            wanted = [numbers[i] for i in positions]
            self.fetched += wanted
            return [bytes_of(number) for number in wanted]

        keys = [key_of(number) for number in numbers]
        sizes = [size_of(number) for number in numbers]
        found = self.cache.read(keys, sizes, fetch)
        assert found == [bytes_of(number) for number in numbers]

    def fetches(self, numbers: Sequence[int]) -> list[int]:
        """Read some numbers; return those that were fetched."""
        self.fetched.clear()
        self.read(numbers)
        return sorted(self.fetched)
