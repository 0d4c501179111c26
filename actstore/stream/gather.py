"""Gathers batches from the window in use.

On the CPU they come from the feed's own buffer, on a GPU from a copy there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.errors import StoreError
from actstore.format.stored_dtypes import bits, to_torch
from actstore.machine.to_device import to_device
from actstore.store.chunk_reader import ChunkReader
from actstore.stream.cursor import Stretch
from actstore.stream.order import Chunk, Rank, Window
from actstore.stream.window_feed import (
    LoadedWindow,
    WindowBuffer,
    WindowFeed,
)
from actstore.stream.window_plan import WindowPlan


class GatheredRows(NamedTuple):
    """The rows of one batch, as they are stored.

    Attributes:
        planes: [n, d] each, in the store's dtype (int8: float32), on the device.
        label: The label of each row's column, int64 [n], on the device.
        row: Row ids, int64 [n], on the device.
        batch_position: Which of the elements that were asked for each row is, int64
            [n], on the host.
    """

    planes: tuple[torch.Tensor, ...]
    label: torch.Tensor
    row: torch.Tensor
    batch_position: torch.Tensor


class _WindowOnDevice(NamedTuple):
    """A window on the device, its buffer flattened over columns.

    Attributes:
        values: By plane, [n_columns * window_rows, d].
        scale: By plane, [n_columns * window_rows]; none where rows are not int8.
        step: By plane, [n_columns * window_chunks, 2, d]; likewise.
        source: Where each element lies in the buffer, int64 [n], in order.
        row: Its row id, int64 [n].
        label: The label of each column's rows, int64 [n_columns].
        copied: When the window has left the host's memory; None on a CPU.
    """

    values: tuple[torch.Tensor, ...]
    scale: tuple[torch.Tensor, ...]
    step: tuple[torch.Tensor, ...]
    source: torch.Tensor
    row: torch.Tensor
    label: torch.Tensor
    copied: torch.cuda.Event | None


class WindowGatherer:
    """Two windows of memory and the threads that fill them.

    `start` begins a plan, `gather` takes rows in its order.

    Attributes:
        stall_s: Seconds spent waiting for data.
        skipped: Chunks that could not be read, and why.
    """

    def __init__(
        self,
        reader: ChunkReader,
        planes: Sequence[Sequence[int]],
        label: Sequence[int],
        window_rows: int,
        device: torch.device,
        threads: int,
        *,
        skip_corrupt: bool = False,
    ) -> None:
        """Take no memory yet.

        Args:
            reader: What reads and decodes chunks.
            planes: Index of a site in the reader's sites, by plane and column.
            label: What `GatheredRows.label` says of each column's rows.
            window_rows: Rows of a column in a window.
            device: Where batches go. Unless it is the CPU, they are gathered there from
                a copy of the window, where int8 rows are decoded too.
            threads: How many read and decode.
            skip_corrupt: Go on without chunks that cannot be read.
        """
        self._reader = reader
        self._planes = planes
        self._n_columns = len(label)
        self._label = np.array(label, np.int64)
        self._window_rows = window_rows
        self._chunk_rows = reader.codecs[0].chunk_rows
        self._device = device
        self._threads = threads
        self._skip_corrupt = skip_corrupt
        self._gathers_on_host = device.type == "cpu"
        self._buffers: list[WindowBuffer] = []
        self._feed: WindowFeed | None = None
        # The window in use, its copy on the device, and which of its elements could be
        # read (None: all).
        self._loaded: LoadedWindow | None = None
        self._on_device: _WindowOnDevice | None = None
        self._is_read: NDArray[np.bool_] | None = None
        self.stall_s = 0.0
        self.skipped: dict[Chunk, StoreError] = {}

    @property
    def running(self) -> bool:
        """True while windows are being loaded."""
        return self._feed is not None

    def start(self, plan: WindowPlan) -> None:
        """Begin to load the windows of a plan."""
        self.stop()
        if not self._buffers:
            self._buffers = [self._buffer() for _ in range(2)]
        self._feed = WindowFeed(
            self._reader,
            self._planes,
            plan,
            self._buffers,
            self._threads,
            skip_corrupt=self._skip_corrupt,
        )

    def stop(self) -> None:
        """Join all threads; the memory is kept."""
        self._wait_for_copy()
        if self._feed is not None:
            self._feed.close()
        self._feed = None
        self._loaded = None
        self._on_device = None

    def close(self) -> None:
        """Join all threads and free the memory."""
        self.stop()
        self._buffers = []

    def gather(self, stretch: Stretch, rank: Rank) -> GatheredRows:
        """Return a process's rows of a stretch of elements.

        Fewer where the plan ends before, or where chunks were skipped; without planes
        where the plan has ended.
        """
        pieces = []
        element = stretch.first
        while element < stretch.last:
            window = self._window_with(stretch.epoch, element // self._n_columns)
            if window is None:
                break
            # A window ends at one row for all columns, so between two elements.
            stop = min(stretch.last, window.stop * self._n_columns)
            n_earlier = element - stretch.first
            pieces.append(self._gather_piece(window, element, stop, rank, n_earlier))
            element = stop
        return self._joined(pieces)

    def _joined(self, pieces: list[GatheredRows]) -> GatheredRows:
        """Return the rows of several windows as those of one batch."""
        if not pieces:
            on_device = torch.zeros(0, dtype=torch.int64, device=self._device)
            on_host = torch.zeros(0, dtype=torch.int64)
            return GatheredRows((), on_device, on_device, on_host)
        if len(pieces) == 1:
            return pieces[0]
        by_plane = zip(*(piece.planes for piece in pieces), strict=True)
        return GatheredRows(
            planes=tuple(torch.cat(values) for values in by_plane),
            label=torch.cat([piece.label for piece in pieces]),
            row=torch.cat([piece.row for piece in pieces]),
            batch_position=torch.cat([piece.batch_position for piece in pieces]),
        )

    def _window_with(self, epoch: int, row: int) -> Window | None:
        """Return the window that holds a column's row; None after the last window.

        Windows before it are given back.
        """
        assert self._feed is not None
        while self._loaded is None or _ends_before(self._loaded.window, epoch, row):
            self._give_back()
            began = time.perf_counter()
            self._loaded = self._feed.get()
            if self._loaded is None:
                return None
            self._is_read = self._which_are_read(self._loaded)
            if not self._gathers_on_host:
                self._on_device = self._copy_to_device(self._loaded)
            self.stall_s += time.perf_counter() - began
        return self._loaded.window

    def _give_back(self) -> None:
        """Let the next window load into the buffer of the one in use."""
        assert self._feed is not None
        if self._loaded is None:
            return
        self._wait_for_copy()
        self._feed.release(self._loaded.buffer)
        self._loaded = None
        self._on_device = None

    def _wait_for_copy(self) -> None:
        """Wait until the window in use has left its buffer on the host."""
        if self._on_device is not None and self._on_device.copied is not None:
            self._on_device.copied.synchronize()

    def _which_are_read(self, loaded: LoadedWindow) -> NDArray[np.bool_] | None:
        """Return which elements of a window lie in chunks that were read; None: all."""
        if not loaded.skipped:
            return None
        self.skipped |= loaded.skipped
        # Cells are numbered through over the columns, as they lie in the flat buffer.
        cells_per_column = self._window_rows // self._chunk_rows
        lost = [
            chunk.column * cells_per_column + chunk.cell for chunk in loaded.skipped
        ]
        cell = loaded.window.source.reshape(-1) // self._chunk_rows
        return np.isin(cell, lost, invert=True)

    def _copy_to_device(self, loaded: LoadedWindow) -> _WindowOnDevice:
        """Copy a window to the device, once for all of its batches."""
        flat_source = torch.from_numpy(loaded.window.source.reshape(-1))
        flat_row = torch.from_numpy(loaded.window.row.reshape(-1))
        source = to_device(flat_source, self._device)
        row = to_device(flat_row, self._device)
        label = to_device(torch.from_numpy(self._label), self._device)
        buffer = loaded.buffer
        values = self._flat_on_device(buffer.values)
        scale = self._flat_on_device(buffer.scale)
        step = self._flat_on_device(buffer.step)
        copied = None
        if self._device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self._device))
        return _WindowOnDevice(values, scale, step, source, row, label, copied)

    def _flat_on_device(
        self, arrays: Sequence[NDArray[Any]]
    ) -> tuple[torch.Tensor, ...]:
        """Begin to copy arrays [n_columns, n, ...], as [n_columns * n, ...]."""
        flat = [array.reshape(-1, *array.shape[2:]) for array in arrays]
        return tuple(
            to_torch(array).to(self._device, non_blocking=True) for array in flat
        )

    def _gather_piece(
        self, window: Window, first: int, last: int, rank: Rank, n_earlier: int
    ) -> GatheredRows:
        """Return a process's rows of the elements [first, last), all of one window.

        `n_earlier` elements of the batch come before them.
        """
        # Elements are counted from the epoch's beginning; in the window's arrays, from
        # its own.
        window_first = window.start * self._n_columns
        begin = first - window_first
        end = last - window_first
        element = np.arange(begin, end)
        if self._is_read is not None:
            element = element[self._is_read[begin:end]]
        if rank.world > 1:
            lane = window.lane[element // self._n_columns]
            element = element[lane % rank.world == rank.number]
        batch_position = torch.from_numpy(element + (n_earlier - begin))
        if self._on_device is not None:
            # One copy for a batch, and it waits for nothing.
            on_device = to_device(torch.from_numpy(element), self._device)
            return self._take_on_device(self._on_device, on_device, batch_position)
        # By numpy: torch's threads would spin beside those that decode.
        label = torch.from_numpy(self._label[element % self._n_columns])
        planes = self._take_on_host(window.source.reshape(-1)[element])
        row = torch.from_numpy(window.row.reshape(-1)[element])
        return GatheredRows(planes, label, row, batch_position)

    def _take_on_host(self, source: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Return rows of every plane, [n, d] each; source: where they lie."""
        assert self._loaded is not None
        planes = []
        for values in self._loaded.buffer.values:
            flat = values.reshape(-1, values.shape[2])
            planes.append(_take_rows(flat, source))
        return tuple(planes)

    def _take_on_device(
        self,
        window: _WindowOnDevice,
        element: torch.Tensor,
        batch_position: torch.Tensor,
    ) -> GatheredRows:
        """Return elements of a window, int64 [n] on the device."""
        source = window.source.index_select(0, element)
        n_planes = len(self._planes)
        planes = [self._decoded(window, plane, source) for plane in range(n_planes)]
        label = window.label.index_select(0, element % self._n_columns)
        row = window.row.index_select(0, element)
        return GatheredRows(tuple(planes), label, row, batch_position)

    def _decoded(
        self, window: _WindowOnDevice, plane: int, source: torch.Tensor
    ) -> torch.Tensor:
        """Return rows of a plane of a window on the device, [n, d].

        int8: mean + step * scale * value, as `stored_dtypes.decode_int8` has it.
        """
        values = window.values[plane].index_select(0, source)
        if not window.scale:
            return values
        scale = window.scale[plane][source].float()
        scaled = values.float() * scale[:, None]
        mean_and_step = window.step[plane][source // self._chunk_rows]
        return torch.addcmul(mean_and_step[:, 0], mean_and_step[:, 1], scaled)

    def _buffer(self) -> WindowBuffer:
        """Take the memory of one window."""
        n_columns = self._n_columns
        n_rows = self._window_rows
        n_cells = n_rows // self._chunk_rows
        stored_dtype = self._reader.codecs[0].dtype
        # int8 rows stay encoded on their way to a GPU: a quarter of the bytes.
        stays_int8 = stored_dtype == np.int8 and not self._gathers_on_host
        dtype = stored_dtype if stays_int8 else self._reader.dtype
        values = []
        scale = []
        step = []
        for plane in self._planes:
            d = self._reader.codecs[plane[0]].d
            values.append(self._memory((n_columns, n_rows, d), dtype))
            if stays_int8:
                half = np.dtype(np.float16)
                single = np.dtype(np.float32)
                scale.append(self._memory((n_columns, n_rows), half))
                step.append(self._memory((n_columns, n_cells, 2, d), single))
        return WindowBuffer(tuple(values), tuple(scale), tuple(step))

    def _memory(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> NDArray[Any]:
        """Return an array, page-locked where it is copied to a GPU."""
        if self._device.type != "cuda":
            return np.empty(shape, dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        # As bytes, for numpy's bfloat16 is no dtype of torch's.
        pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        flat = pinned.numpy().view(dtype)
        array: NDArray[Any] = flat.reshape(shape)
        return array


def _ends_before(window: Window, epoch: int, row: int) -> bool:
    """Return whether a row of an epoch comes after a window."""
    return (window.epoch, window.stop) <= (epoch, row)


def _take_rows(rows: NDArray[Any], index: NDArray[np.int64]) -> torch.Tensor:
    """Return rows[index] as a tensor.

    One thread, in 8-byte words and without bounds checks: torch's own gather contends
    with the threads that decode, and numpy's default checks through a second buffer.
    """
    d = rows.shape[1]
    out = np.empty((len(index), d), rows.dtype)
    # Rows of an odd number of small values cannot be told in 8-byte words.
    words = "i8" if rows.strides[0] % 8 == 0 else bits(rows[:0]).dtype
    source_words = rows.view(words)
    out_words = out.view(words)
    np.take(source_words, index, axis=0, out=out_words, mode="clip")
    return to_torch(out)
