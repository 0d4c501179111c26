"""A bucket that refuses requests as S3 does, and splits what is asked too much.

A partition is a range of keys: some folders that follow each other in the order of
keys. It serves so many requests in a second and answers 503 to the rest. Some time
after its first refusal it is split where its load is halved; one folder alone is not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Bucket:
    """The partitions of a bucket. Requests are counted by folder, int64 [n_folders].

    Attributes:
        folders: All there are, in the order of keys.
        served: Requests of each that were served.
        refused: Requests of each that were answered with 503.
        splits: How many partitions were split.
    """

    def __init__(
        self,
        folders: Sequence[str],
        rate: float,
        split_after: tuple[float, float],
        rng: random.Random,
        *,
        is_split: bool,
    ) -> None:
        """Make it.

        Args:
            folders: All there are.
            rate: Requests per second and partition; 0: no limit.
            split_after: Seconds from the first refusal to a split, least and most.
            rng: Draws these.
            is_split: Each folder has a partition of its own from the beginning.
        """
        self.folders = sorted(folders)
        n = len(self.folders)
        self.served: Ints = np.zeros(n, np.int64)
        self.refused: Ints = np.zeros(n, np.int64)
        self.splits = 0
        self._rate = rate
        self._split_after = split_after
        self._rng = rng
        # The first folder of each partition. A second's requests are there at once.
        self._starts: Ints = np.arange(n if is_split else 1)
        self._left: Floats = np.full(len(self._starts), float(rate))
        self._splits_at: Floats = np.full(len(self._starts), np.inf)
        self._counted_at = 0.0

    @property
    def n_partitions(self) -> int:
        """Partitions that there are now."""
        return len(self._starts)

    def ask(self, wanted: Ints, now: float) -> Ints | None:
        """Return how many of some requests are refused; None: none of them."""
        if self._rate == 0:
            self.served += wanted
            return None
        while self._splits_at.min() <= now:
            self._split(int(self._splits_at.argmin()))
        self._left += (now - self._counted_at) * self._rate
        np.minimum(self._left, self._rate, out=self._left)
        self._counted_at = now
        of_partition = np.add.reduceat(wanted, self._starts)
        served = np.minimum(of_partition, self._left.astype(np.int64))
        self._left -= served
        if (served == of_partition).all():
            self.served += wanted
            return None
        return self._refuse(wanted, of_partition, served, now)

    def _refuse(
        self, wanted: Ints, of_partition: Ints, served: Ints, now: float
    ) -> Ints:
        """Count what is served and refused of each folder; return the refused ones.

        wanted: [n_folders]; of_partition, served: [n_partitions].
        """
        sizes = np.diff(self._starts, append=len(self.folders))
        # A partition serves its folders' requests in their order.
        before = np.cumsum(wanted) - wanted
        before -= np.repeat(before[self._starts], sizes)
        of_folder = np.clip(np.repeat(served, sizes) - before, 0, wanted)
        refused: Ints = wanted - of_folder
        self.served += of_folder
        self.refused += refused
        for partition in np.flatnonzero((served < of_partition) & (sizes > 1)):
            if self._splits_at[partition] == np.inf:
                wait = self._rng.uniform(*self._split_after)
                self._splits_at[partition] = now + wait
        return refused

    def _split(self, partition: int) -> None:
        """Divide a partition where half of its load lies on either side."""
        self.splits += 1
        first = self._starts[partition]
        ends = [*self._starts[1:], len(self.folders)]
        load = (self.served + self.refused)[first : ends[partition]]
        below = int(np.searchsorted(np.cumsum(load), load.sum() / 2)) + 1
        below = min(below, len(load) - 1)
        place = partition + 1
        self._starts = np.insert(self._starts, place, first + below)
        self._left = np.insert(self._left, place, self._rate)
        self._splits_at[partition] = np.inf
        self._splits_at = np.insert(self._splits_at, place, np.inf)
