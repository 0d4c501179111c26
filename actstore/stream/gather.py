"""The window in use, where batches are gathered from: on the CPU in the feed's own
buffer, on a GPU in a copy there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.errors import StoreError
from actstore.format.dtypes import bits, to_torch
from actstore.store.chunk_reader import ChunkReader
from actstore.stream.order import Chunk, Window
from actstore.stream.window_feed import (
    LoadedWindow,
    WindowBuffer,
    WindowFeed,
    WindowLoads,
)


class GatheredRows(NamedTuple):
    """planes: [n, d] each, in the store's dtype (int8: float32); label, row: int64 [n];
    all on the device. batch_position: int64 [n] on the host, which element of those
    asked for each is.
    """

    planes: tuple[torch.Tensor, ...]
    label: torch.Tensor
    row: torch.Tensor
    batch_position: torch.Tensor


class _OnDevice(NamedTuple):
    """A window on the device: its buffer, flattened over columns; source and row: of
    each element in order; copied: when it has left the host's memory.
    """

    values: tuple[torch.Tensor, ...]
    scale: tuple[torch.Tensor, ...]
    step: tuple[torch.Tensor, ...]
    source: torch.Tensor
    row: torch.Tensor
    copied: torch.cuda.Event | None


class WindowGatherer:
    """Two windows of memory and the threads that fill them. `start` begins a plan,
    `gather` takes rows in its order.

    planes: index in the reader's sites, by plane and column; label: of each column;
    rows: of a column in a window; on_device: batches are gathered on the device from a
    copy of the window, where int8 rows are decoded too. skipped: chunks that could not
    be read, and why.
    """

    def __init__(
        self,
        reader: ChunkReader,
        planes: Sequence[Sequence[int]],
        label: Sequence[int],
        rows: int,
        device: torch.device,
        threads: int,
        *,
        skip_corrupt: bool = False,
        on_device: bool | None = None,
    ) -> None:
        self._reader, self._planes, self._rows = reader, planes, rows
        self._label = np.array(label, np.int64)
        self._device, self._threads, self._skip = device, threads, skip_corrupt
        self._in_place = device.type == "cpu" if on_device is None else not on_device
        self._buffers: list[WindowBuffer] = []
        self._feed: WindowFeed | None = None
        self._loaded: LoadedWindow | None = None
        self._moved: _OnDevice | None = None
        self._usable: NDArray[np.bool_] | None = None
        self.stall_s = 0.0
        self.skipped: dict[Chunk, StoreError] = {}

    @property
    def running(self) -> bool:
        return self._feed is not None

    def start(self, plan: Callable[[Callable[[], bool]], WindowLoads]) -> None:
        """Begin to load windows. `plan` is given a function that tells whether to stop."""
        self.stop()
        if not self._buffers:
            self._buffers = [self._buffer() for _ in range(2)]
        self._feed = WindowFeed(
            self._reader, self._planes, plan, self._buffers, self._threads, skip_corrupt=self._skip
        )  # fmt: skip

    def stop(self) -> None:
        """Join all threads; the memory is kept."""
        if self._feed is not None:
            self._feed.close()
        self._feed, self._loaded, self._moved = None, None, None

    def close(self) -> None:
        self.stop()
        self._buffers = []

    def gather(
        self, epoch: int, first: int, last: int, lanes: tuple[int, int]
    ) -> GatheredRows:
        """Elements [first, last) of an epoch; of them those whose lane is `lanes[0]`
        mod `lanes[1]`.

        Fewer where the plan ends before, or where chunks were skipped.
        """
        n, parts, begin = len(self._planes[0]), [], first
        while first < last:
            window = self._window(epoch, first // n)
            if window is None:
                break
            stop = min(last, window.stop * n)
            parts.append(
                self._take(
                    window,
                    first - window.start * n,
                    stop - window.start * n,
                    lanes,
                    first - begin,
                )
            )
            first = stop
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=self._device)
            return GatheredRows((), none, none, torch.zeros(0, dtype=torch.int64))
        if len(parts) == 1:
            return parts[0]
        planes = tuple(
            torch.cat(plane)
            for plane in zip(*(part.planes for part in parts), strict=True)
        )
        labels, rows, positions = (
            [getattr(part, name) for part in parts]
            for name in ("label", "row", "batch_position")
        )
        return GatheredRows(
            planes, torch.cat(labels), torch.cat(rows), torch.cat(positions)
        )

    def _window(self, epoch: int, row: int) -> Window | None:
        """The window that holds a column's row, None behind the last; windows before it
        are given back.
        """
        assert self._feed is not None
        while self._loaded is None or (
            self._loaded.window.epoch,
            self._loaded.window.stop,
        ) <= (epoch, row):
            if self._loaded is not None:
                if self._moved is not None and self._moved.copied is not None:
                    # the copy reads the buffer until then
                    self._moved.copied.synchronize()
                self._feed.release(self._loaded.rows)
                self._loaded = self._moved = None
            began = time.perf_counter()
            self._loaded = self._feed.get()
            if self._loaded is None:
                return None
            self._usable = self._without(self._loaded)
            if not self._in_place:
                self._moved = self._move(self._loaded)
            self.stall_s += time.perf_counter() - began
        return self._loaded.window

    def _without(self, loaded: LoadedWindow) -> NDArray[np.bool_] | None:
        """Which of a window's elements lie in chunks that were read; None: all."""
        if not loaded.bad:
            return None
        self.skipped |= loaded.bad
        places = self._rows // self._reader.codecs[0].chunk_rows
        lost = [chunk.column * places + chunk.cell for chunk in loaded.bad]
        place = loaded.window.source.reshape(-1) // self._reader.codecs[0].chunk_rows
        return np.isin(place, lost, invert=True)

    def _move(self, loaded: LoadedWindow) -> _OnDevice:
        """The window on the device, copied once."""

        def moved(
            arrays: Sequence[NDArray[Any]], inner: int
        ) -> tuple[torch.Tensor, ...]:
            flat = (array.reshape(-1, *array.shape[2:][:inner]) for array in arrays)
            return tuple(
                to_torch(array).to(self._device, non_blocking=True) for array in flat
            )

        rows, window = loaded.rows, loaded.window
        index, row = (
            torch.from_numpy(a.reshape(-1)).to(self._device)
            for a in (window.source, window.row)
        )
        parts = moved(rows.values, 1), moved(rows.scale, 0), moved(rows.step, 2)
        copied = torch.cuda.Event() if self._device.type == "cuda" else None
        if copied is not None:
            copied.record(torch.cuda.current_stream(self._device))
        return _OnDevice(*parts, index, row, copied)

    def _take(
        self, window: Window, first: int, last: int, lanes: tuple[int, int], before: int
    ) -> GatheredRows:
        """Elements of a window; `before` of those asked for come before it."""
        n = len(self._planes[0])
        position = np.arange(first, last)
        if self._usable is not None:
            position = position[self._usable[first:last]]
        if lanes[1] > 1:
            position = position[window.lane[position // n] % lanes[1] == lanes[0]]
        place = torch.from_numpy(position + (before - first))
        # numpy: torch's threads would spin beside the decoders
        label = torch.from_numpy(self._label[position % n])
        if self._moved is not None:
            where = torch.from_numpy(position).to(self._device)
            source = self._moved.source[where]
            planes = tuple(
                self._decoded(self._moved, i, source) for i in range(len(self._planes))
            )
            return GatheredRows(
                planes, label.to(self._device), self._moved.row[where], place
            )
        assert self._loaded is not None
        index = window.source.reshape(-1)[position]
        planes = tuple(
            _gather(p.reshape(-1, p.shape[2]), index) for p in self._loaded.rows.values
        )
        return GatheredRows(
            planes, label, torch.from_numpy(window.row.reshape(-1)[position]), place
        )

    def _decoded(
        self, moved: _OnDevice, plane: int, source: torch.Tensor
    ) -> torch.Tensor:
        """GatheredRows [n, d] of a window on the device; int8: mean + step * scale *
        value (`dtypes.decode_int8`).
        """
        values = moved.values[plane].index_select(0, source)
        if not moved.scale:
            return values
        scaled = values.float() * moved.scale[plane][source].float()[:, None]
        step = moved.step[plane][source // self._reader.codecs[0].chunk_rows]
        return torch.addcmul(step[:, 0], step[:, 1], scaled)

    def _buffer(self) -> WindowBuffer:
        """A window's memory, page-locked where batches go to a GPU, where int8 stays
        encoded.
        """
        encoded = self._reader.codecs[0].dtype == np.int8 and not self._in_place
        dtype = np.dtype(np.int8) if encoded else self._reader.dtype
        n, widths = (
            len(self._planes[0]),
            [self._reader.codecs[plane[0]].d for plane in self._planes],
        )
        values = tuple(self._memory((n, self._rows, d), dtype) for d in widths)
        if not encoded:
            return WindowBuffer(values)
        places = self._rows // self._reader.codecs[0].chunk_rows
        return WindowBuffer(
            values,
            tuple(self._memory((n, self._rows), np.dtype(np.float16)) for _ in widths),
            tuple(
                self._memory((n, places, 2, d), np.dtype(np.float32)) for d in widths
            ),
        )

    def _memory(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        if self._device.type != "cuda":
            return np.empty(shape, dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        view: NDArray[Any] = pinned.numpy().view(dtype).reshape(shape)
        return view


def _gather(rows: NDArray[Any], index: NDArray[np.int64]) -> torch.Tensor:
    """rows[index] as a tensor. One thread, in 8-byte words and without bounds checks:
    torch's own gather contends with the threads that decode, and numpy's default checks
    through a second buffer.
    """
    out = np.empty((len(index), rows.shape[1]), rows.dtype)
    words = "i8" if rows.strides[0] % 8 == 0 else bits(rows[:0]).dtype
    np.take(rows.view(words), index, axis=0, out=out.view(words), mode="clip")
    return to_torch(out)
