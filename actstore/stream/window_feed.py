"""Loads windows ahead of their use: one thread that plans, some that read and decode,
two buffers.

A buffer goes back when its window is used up (`release`); then the next window loads
into it. A reader's error ends the feed and is raised where the window is asked for, but
for chunks that are corrupt or missing where these are to be skipped: they are named
with their window. `close` joins every thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError, StoreError
from actstore.store.chunk_reader import ChunkReader
from actstore.stream.order import Chunk, Window

WindowLoads = Iterator[tuple[Window, list[Chunk]]]


class WindowBuffer(NamedTuple):
    """Memory of a window by plane. values: [n_columns, window_chunks * chunk_rows, d];
    where int8 stays encoded, scale: float16 [n_columns, window_chunks * chunk_rows],
    step: float32 [n_columns, window_chunks, 2, d].
    """

    values: tuple[NDArray[Any], ...]
    scale: tuple[NDArray[np.float16], ...] = ()
    step: tuple[NDArray[np.float32], ...] = ()


class LoadedWindow(NamedTuple):
    """A window and its rows (those outside `window.source` are undefined); bad: chunks
    skipped, and why.
    """

    window: Window
    rows: WindowBuffer
    bad: dict[Chunk, StoreError]


class WindowFeed:
    """Windows in order. `plan`, given a function that tells whether to stop, yields
    (window, the chunks to read).

    planes: index in the reader's sites, by plane and column; skip_corrupt: go on
    without chunks that cannot be read.
    """

    def __init__(
        self,
        reader: ChunkReader,
        planes: Sequence[Sequence[int]],
        plan: Callable[[Callable[[], bool]], WindowLoads],
        buffers: list[WindowBuffer],
        threads: int,
        *,
        skip_corrupt: bool = False,
    ) -> None:
        self._reader, self._planes, self._skip = reader, planes, skip_corrupt
        self._ready: queue.Queue[LoadedWindow | BaseException | None] = queue.Queue()
        self._free: queue.Queue[WindowBuffer | None] = queue.Queue()
        self._stop = threading.Event()
        self._plan = plan(self._stop.is_set)
        for buffer in buffers:
            self._free.put(buffer)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stream-read")
        self._thread = threading.Thread(
            target=self._run, name="stream-feed", daemon=True
        )
        self._thread.start()

    def get(self) -> LoadedWindow | None:
        """The next window (waits for it), or None behind the last. Raises what a reader
        raised.
        """
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # asking again gives the same error, not a hang
            raise item
        if item is None:
            self._ready.put(None)
        return item

    def release(self, buffer: WindowBuffer) -> None:
        """Give back the buffer of a window that is used up."""
        self._free.put(buffer)

    def close(self) -> None:
        """Stop early; every thread has ended when this returns. Whoever waits in `get`
        is told.
        """
        self._stop.set()
        self._free.put(None)
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        self._ready.put(
            StoreError(
                "the stream was closed while its next batch was being waited for"
            )
        )

    def _run(self) -> None:
        try:
            coming = next(self._plan, None)
            while coming is not None:
                buffer = self._free.get()
                if buffer is None or self._stop.is_set():
                    return
                window, chunks = coming
                bad: dict[Chunk, StoreError] = {}
                futures = self._submit(chunks, buffer, bad)
                try:
                    # the next order is worked out while this window loads
                    coming = next(self._plan, None)
                finally:
                    self._finish(futures)
                if self._stop.is_set():
                    return  # chunks were left out: this window is not whole
                self._ready.put(LoadedWindow(window, buffer, bad))
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 (it is raised again where the window is asked for)
            self._ready.put(error)

    def _submit(
        self, chunks: list[Chunk], buffer: WindowBuffer, bad: dict[Chunk, StoreError]
    ) -> list[Future[None]]:
        def load(one: Chunk, plane: int) -> None:
            if self._stop.is_set():
                return
            try:
                self._load(one, plane, buffer)
            except (CorruptError, ObjectError) as error:
                if not self._skip:
                    raise
                bad[one] = error

        return [
            self._pool.submit(load, chunk, plane)
            for chunk in chunks
            for plane in range(len(self._planes))
        ]

    def _load(self, one: Chunk, plane: int, buffer: WindowBuffer) -> None:
        site, rows = self._planes[plane][one.column], self._reader.codecs[0].chunk_rows
        here = slice(one.cell * rows, (one.cell + 1) * rows)
        self._reader.read(
            site, one.unit, one.chunk, buffer.values[plane][one.column, here]
        )
        if buffer.scale:
            scale, step = self._reader.int8_parts(site, one.unit, one.chunk)
            buffer.scale[plane][one.column, here] = scale
            buffer.step[plane][one.column, one.cell] = step

    def _finish(self, futures: list[Future[None]]) -> None:
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise
