"""Loads windows ahead of their use: one thread that plans, some that read and decode, two buffers.

A buffer goes back when its window is used up (`release`); then the next window loads into it. A reader's error ends
the feed and is raised where the window is asked for; `close` joins every thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from numpy.typing import NDArray

from actstore.stream.order import Chunk, Window
from actstore.stream.reader import ChunkReader


class Loaded(NamedTuple):
    """A window and its rows, [n_sites, window_chunks * chunk_rows, d]; rows outside `window.slot` are undefined."""

    window: Window
    rows: NDArray[Any]


class WindowFeed:
    """Windows in order. `plan` yields (window, the chunks to read)."""

    def __init__(
        self, reader: ChunkReader, plan: Iterator[tuple[Window, list[Chunk]]], buffers: list[NDArray[Any]], threads: int
    ) -> None:
        self._reader, self._plan = reader, plan
        self._ready: queue.Queue[Loaded | BaseException | None] = queue.Queue()
        self._free: queue.Queue[NDArray[Any] | None] = queue.Queue()
        self._stop = threading.Event()
        for buffer in buffers:
            self._free.put(buffer)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stream-read")
        self._thread = threading.Thread(target=self._run, name="stream-feed", daemon=True)
        self._thread.start()

    def get(self) -> Loaded | None:
        """The next window (waits for it), or None behind the last. Raises what a reader raised."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # asking again gives the same error, not a hang
            raise item
        if item is None:
            self._ready.put(None)
        return item

    def release(self, buffer: NDArray[Any]) -> None:
        """Give back the buffer of a window that is used up."""
        self._free.put(buffer)

    def close(self) -> None:
        """Stop early; every thread has ended when this returns."""
        self._stop.set()
        self._free.put(None)
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _run(self) -> None:
        try:
            coming = next(self._plan, None)
            while coming is not None:
                buffer = self._free.get()
                if buffer is None or self._stop.is_set():
                    return
                window, chunks = coming
                futures = self._submit(chunks, buffer)
                try:
                    coming = next(self._plan, None)  # the next order is worked out while this window loads
                finally:
                    self._finish(futures)
                self._ready.put(Loaded(window, buffer))
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 (it is raised again where the window is asked for)
            self._ready.put(error)

    def _submit(self, chunks: list[Chunk], buffer: NDArray[Any]) -> list[Future[None]]:
        rows = self._reader.codecs[0].chunk_rows

        def load(one: Chunk) -> None:
            if not self._stop.is_set():
                out = buffer[one.site, one.place * rows : (one.place + 1) * rows]
                self._reader.read(one.site, one.unit, one.chunk, out)

        return [self._pool.submit(load, chunk) for chunk in chunks]

    def _finish(self, futures: list[Future[None]]) -> None:
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise
