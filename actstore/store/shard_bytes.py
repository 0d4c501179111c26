"""The one way to the bytes of shards that lie in an object store.

All ranged reads of shards go through a `ShardBytes`: bytes of chunks and of indexes.
`StoredShards` asks the object store, where every request waits and costs money. So
ranges that lie near each other are read by one request, which moves fewer than 1.25
times the bytes that are wanted.

For example the ranges (0, 10), (10, 10) and (24, 10), as (offset, length): one request
for the bytes 0 to 34 moves 34 bytes for 30. Without the one in the middle it would move
34 for 20, which is too many, so that there would be two requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from actstore.format import object_keys
from actstore.format.storage import Part, Storage

ByteRange = tuple[int, int]
"""Offset and length; a negative offset counts from the shard's end."""

# The most bytes that a request moves for each byte that is wanted; never as many.
MOST_MOVED = 1.25
# Larger requests save little and wait longer for their last byte.
REQUEST_BYTES = 8 << 20


class ShardBytes(Protocol):
    """Gives byte ranges of shards; safe to use from several threads."""

    def read(self, site: str, unit: int, ranges: Sequence[ByteRange]) -> list[Part]:
        """Return some ranges of a site's shard of a unit, in the order asked for.

        Each is a whole chunk, or the index. Waits until all are there. A range that the
        shard ends before is shorter than asked for: what decodes it says so.

        Raises:
            ObjectError: There is no such shard.
            StorageError: It cannot be reached.
        """
        ...

    def whole(self, unit: int, key: str, size: int) -> bytes:
        """Return a whole object of a unit that ends with its checksum, as chunks do.

        Args:
            unit: The unit.
            key: The object's key.
            size: The bytes that it must have; of a longer one no more are read.

        Raises:
            ObjectError: There is none, or it is longer.
            StorageError: It cannot be reached.
        """
        ...

    def check_windows(self, window_bytes: int) -> None:
        """Raise SpecError where two windows of a stream are more than can be kept."""
        ...


class JoinedRange(NamedTuple):
    """A range that one request reads, and the ranges that are cut out of it.

    Attributes:
        offset: Where it begins.
        length: How many bytes it has.
        members: Positions of its ranges among those that were joined.
    """

    offset: int
    length: int
    members: tuple[int, ...]


class StoredShards:
    """The shards of a store as they lie in its storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, site: str, unit: int, ranges: Sequence[ByteRange]) -> list[Part]:
        """Return some ranges of a shard, with as few requests as are worth it."""
        key = shard_key(site, unit)
        joined = joined_ranges(ranges)
        wholes = self._storage.read_ranges(
            key, [(one.offset, one.length) for one in joined]
        )
        found: dict[int, Part] = {}
        for one, whole in zip(joined, wholes, strict=True):
            for position in one.members:
                offset, length = ranges[position]
                first = offset - one.offset
                is_whole = len(one.members) == 1
                found[position] = whole if is_whole else whole[first : first + length]
        return [found[position] for position in range(len(ranges))]

    def whole(self, unit: int, key: str, size: int) -> bytes:  # noqa: ARG002 (others ask by it)
        """Return a whole object, as `ShardBytes` says."""
        return self._storage.read(key, size)

    def check_windows(self, window_bytes: int) -> None:
        """Do nothing: what is read is not kept here."""


def shard_key(site: str, unit: int) -> str:
    """Return the key of the shard with a site's rows of a unit."""
    return object_keys.chunk_key(object_keys.acts_key(site), unit, 0)


def joined_ranges(ranges: Sequence[ByteRange]) -> list[JoinedRange]:
    """Return what to ask for, so that every range is read once.

    Ranges are joined where the whole has fewer than `MOST_MOVED` times their bytes, and
    at most `REQUEST_BYTES`. Those that count from the end are asked for as they are.
    """
    joined: list[JoinedRange] = []
    wanted_bytes = 0  # of the last one
    for position in sorted(range(len(ranges)), key=lambda one: ranges[one]):
        offset, length = ranges[position]
        end = offset + length
        if joined and offset >= 0 and joined[-1].offset >= 0:
            last = joined[-1]
            last_end = last.offset + last.length
            # What overlaps is wanted once.
            wanted = wanted_bytes + max(0, end - max(offset, last_end))
            whole = max(end, last_end) - last.offset
            if whole <= REQUEST_BYTES and whole < MOST_MOVED * wanted:
                members = (*last.members, position)
                joined[-1] = JoinedRange(last.offset, whole, members)
                wanted_bytes = wanted
                continue
        joined.append(JoinedRange(offset, length, (position,)))
        wanted_bytes = length
    return joined
