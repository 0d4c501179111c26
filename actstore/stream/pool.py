"""The window in use, where batches are gathered from: on the CPU in the feed's own buffer, on a GPU in a copy there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.format.dtypes import bits, to_torch
from actstore.stream.feed import Loaded, WindowFeed
from actstore.stream.order import Chunk, Window
from actstore.stream.reader import ChunkReader


class Rows(NamedTuple):
    """x: [n, d] in the store's dtype (int8: float32), site: int64 [n], row: int64 [n], on the pool's device."""

    x: torch.Tensor
    site: torch.Tensor
    row: torch.Tensor


class Pool:
    """Two windows of memory and the threads that fill them. `start` begins a plan, `gather` takes rows in its order."""

    def __init__(self, reader: ChunkReader, shape: tuple[int, int, int], device: torch.device, threads: int) -> None:
        """shape: of a window, (n_sites, rows, d)."""
        self._reader, self._shape, self._device, self._threads = reader, shape, device, threads
        self._in_place = device.type == "cpu"
        self._buffers: list[NDArray[Any]] = []
        self._feed: WindowFeed | None = None
        self._loaded: Loaded | None = None
        self._on_device: Rows | None = None
        self.stall_s = 0.0

    @property
    def running(self) -> bool:
        return self._feed is not None

    def start(self, plan: Iterator[tuple[Window, list[Chunk]]]) -> None:
        """Begin to load windows."""
        self.stop()
        if not self._buffers:
            self._buffers = [self._buffer() for _ in range(2)]
        self._feed = WindowFeed(self._reader, plan, self._buffers, self._threads)

    def stop(self) -> None:
        """Join all threads; the memory is kept."""
        if self._feed is not None:
            self._feed.close()
        self._feed, self._loaded, self._on_device = None, None, None

    def close(self) -> None:
        self.stop()
        self._buffers = []

    def gather(self, epoch: int, first: int, last: int, lanes: tuple[int, int]) -> Rows:
        """Elements [first, last) of an epoch; of them those whose lane is `lanes[0]` mod `lanes[1]`."""
        n, parts = self._shape[0], []
        while first < last:
            window = self._window(epoch, first // n)
            stop = min(last, window.stop * n)
            parts.append(self._take(window, first - window.start * n, stop - window.start * n, lanes))
            first = stop
        if len(parts) == 1:
            return parts[0]
        return Rows(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def _window(self, epoch: int, row: int) -> Window:
        """The window that holds a site's row; windows before it are given back."""
        assert self._feed is not None
        while self._loaded is None or (self._loaded.window.epoch, self._loaded.window.stop) <= (epoch, row):
            if self._loaded is not None:
                self._feed.release(self._loaded.rows)
                self._loaded = self._on_device = None
            began = time.perf_counter()
            self._loaded = self._feed.get()
            assert self._loaded is not None, "the plan ended before the epoch"
            if not self._in_place:
                self._on_device = self._moved(self._loaded)
            self.stall_s += time.perf_counter() - began
        return self._loaded.window

    def _moved(self, loaded: Loaded) -> Rows:
        """The window on the device, copied once: all rows, and for each element in order its place and row id."""
        window, d = loaded.window, self._shape[2]
        index, row = (torch.from_numpy(a.reshape(-1)).to(self._device) for a in (window.source, window.row))
        return Rows(to_torch(loaded.rows.reshape(-1, d)).to(self._device), index, row)

    def _take(self, window: Window, first: int, last: int, lanes: tuple[int, int]) -> Rows:
        n = self._shape[0]
        position = np.arange(first, last)
        if lanes[1] > 1:
            position = position[window.lane[position // n] % lanes[1] == lanes[0]]
        site = torch.from_numpy(position % n)
        if self._on_device is not None:
            whole, index, row = self._on_device
            where = torch.from_numpy(position).to(self._device)
            return Rows(whole.index_select(0, index[where]), site.to(self._device), row[where])
        assert self._loaded is not None
        x = _gather(self._loaded.rows.reshape(-1, self._shape[2]), window.source.reshape(-1)[position])
        return Rows(x, site, torch.from_numpy(window.row.reshape(-1)[position]))

    def _buffer(self) -> NDArray[Any]:
        """A window's memory, page-locked where batches go to a GPU."""
        if self._device.type != "cuda":
            return np.empty(self._shape, self._reader.dtype)
        n_bytes = int(np.prod(self._shape)) * self._reader.dtype.itemsize
        pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        view: NDArray[Any] = pinned.numpy().view(self._reader.dtype).reshape(self._shape)
        return view


def _gather(rows: NDArray[Any], index: NDArray[np.int64]) -> torch.Tensor:
    """rows[index] as a tensor. One thread, in 8-byte words and without bounds checks: torch's own gather contends with
    the threads that decode, and numpy's default checks through a second buffer."""
    out = np.empty((len(index), rows.shape[1]), rows.dtype)
    words = "i8" if rows.strides[0] % 8 == 0 else bits(rows[:0]).dtype
    np.take(rows.view(words), index, axis=0, out=out.view(words), mode="clip")
    return to_torch(out)
