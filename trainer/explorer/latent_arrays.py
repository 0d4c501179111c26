"""Arrays with an entry for each latent, kept in files and seen one range at a time.

A dictionary may have any number of latents, and some of what is gathered takes
kilobytes for each. So it lies in files of a temporary folder. A range of latents is
mapped, changed and let go, after which its pages are no longer the process's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Entry(NamedTuple):
    """The shape and type of an array's entry for one latent.

    Attributes:
        dtype: Of its numbers.
        shape: Their shape for one latent; () for a single number.
    """

    dtype: Any
    shape: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes that it takes for a latent."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class LatentArrays:
    """Arrays [m, ...] in files, all 0 at first.

    Attributes:
        n_latents: m.
        range_size: Latents of a range.
    """

    def __init__(
        self, folder: Path, n_latents: int, entries: dict[str, Entry], memory: int
    ) -> None:
        """Make the files.

        Args:
            folder: Where they go; it exists, and has none of them.
            n_latents: m.
            entries: What each array has for a latent, by the array's name.
            memory: Bytes that the mapped arrays of one range may take.
        """
        self.n_latents = n_latents
        self._folder = folder
        self._entries = entries
        per_latent = sum(entry.bytes for entry in entries.values())
        self.range_size = max(1, min(n_latents, memory // per_latent))
        for name, entry in entries.items():
            with self._path(name).open("wb") as file:
                # A file with a hole: what is never written takes no room.
                file.truncate(n_latents * entry.bytes)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (first latent, end) of each range, in order."""
        for first in range(0, self.n_latents, self.range_size):
            yield first, min(first + self.range_size, self.n_latents)

    def mapped(self, first: int, end: int, names: tuple[str, ...] = ()) -> Arrays:
        """Return arrays [end - first, ...] of a range; changes go to the files.

        Args:
            first: The first latent.
            end: The latent after the last one.
            names: Which arrays; all of them where it is empty.
        """
        arrays: Arrays = {}
        for name in names or tuple(self._entries):
            entry = self._entries[name]
            arrays[name] = np.memmap(
                self._path(name),
                dtype=entry.dtype,
                mode="r+",
                offset=first * entry.bytes,
                shape=(end - first, *entry.shape),
            )
        return arrays

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.bin"
