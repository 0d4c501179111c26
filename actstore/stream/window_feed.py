"""Loads windows before they are used.

One thread plans, some read and decode, and there are two buffers. Chunks that lie in an
object store are fetched apart from that (`chunk_fetch.py`), and only decoded here.

A buffer goes back when its window is used up (`release`); then the next window loads
into it. A reader's error ends the feed and is raised where the window is asked for. If
chunks that are corrupt or missing are to be skipped, they are named with their window
instead. `close` joins every thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ObjectError, StoreError
from actstore.store.chunk_reader import ChunkReader, Fetched
from actstore.store.shard_bytes import REQUEST_BYTES
from actstore.stream.chunk_fetch import (
    FETCHED_BYTES,
    Cell,
    ChunkFetch,
    Fetch,
    FetchedWindow,
)
from actstore.stream.order import Chunk, Window
from actstore.stream.window_plan import WindowLoad, WindowPlan


class WindowBuffer(NamedTuple):
    """The memory of a window, by plane.

    Attributes:
        values: [n_columns, window_chunks * chunk_rows, d] each.
        scale: Where int8 rows stay encoded, float16 [n_columns, window_chunks *
            chunk_rows] each.
        step: Likewise, float32 [n_columns, window_chunks, 2, d] each.
    """

    values: tuple[NDArray[Any], ...]
    scale: tuple[NDArray[np.float16], ...] = ()
    step: tuple[NDArray[np.float32], ...] = ()


class LoadedWindow(NamedTuple):
    """A window and its rows in memory.

    Attributes:
        window: Which rows come, in which order.
        buffer: Where they lie; what `window.source` does not point to is undefined.
        skipped: Chunks that could not be read, and why.
    """

    window: Window
    buffer: WindowBuffer
    skipped: dict[Chunk, StoreError]


class WindowFeed:
    """The windows of a plan, in order, each loaded while the one before it is used."""

    def __init__(
        self,
        reader: ChunkReader,
        planes: Sequence[Sequence[int]],
        plan: WindowPlan,
        buffers: list[WindowBuffer],
        threads: int,
        *,
        skip_corrupt: bool = False,
    ) -> None:
        """Begin to load.

        Args:
            reader: What reads and decodes chunks.
            planes: Index of a site in the reader's sites, by plane and column.
            plan: The windows, and the chunks of each that are read.
            buffers: The memory that windows are loaded into, in turn.
            threads: How many read and decode.
            skip_corrupt: Go on without chunks that cannot be read.
        """
        self._reader = reader
        self._planes = planes
        self._skip_corrupt = skip_corrupt
        # What was loaded; at the end None, or the error that ended the feed.
        self._ready: queue.Queue[LoadedWindow | BaseException | None] = queue.Queue()
        # None tells the feeding thread to stop waiting.
        self._free: queue.Queue[WindowBuffer | None] = queue.Queue()
        self._stop = threading.Event()
        self._plan = plan(self._stop.is_set)
        self._fetch: ChunkFetch | None = None
        if reader.store.storage.local is None:
            self._fetch = ChunkFetch(reader, planes, self._plan, _room(buffers))
        for buffer in buffers:
            self._free.put(buffer)
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="stream-read")
        # A daemon: a stream that nobody closes must not keep the process alive.
        self._thread = threading.Thread(
            target=self._run, name="stream-feed", daemon=True
        )
        self._thread.start()

    def get(self) -> LoadedWindow | None:
        """Return the next window, once it is loaded; None after the last.

        Raises what a reader raised.
        """
        item = self._ready.get()
        if isinstance(item, BaseException):
            # A caller that asks again gets the same error, and does not wait for ever.
            self._ready.put(item)
            raise item
        if item is None:
            self._ready.put(None)
        return item

    def release(self, buffer: WindowBuffer) -> None:
        """Give back the buffer of a window that is used up."""
        self._free.put(buffer)

    def close(self) -> None:
        """Stop early; every thread has ended when this returns.

        Whoever waits in `get` is given a StoreError.
        """
        self._stop.set()
        self._free.put(None)
        if self._fetch is not None:
            self._fetch.close()
        self._thread.join()
        self._readers.shutdown(cancel_futures=True)
        self._ready.put(
            StoreError(
                "the stream was closed while its next batch was being waited for"
            )
        )

    def _run(self) -> None:
        """Load one window after the other: what the feeding thread does."""
        try:
            load = self._next()
            while load is not None:
                buffer = self._free.get()
                if buffer is None or self._stop.is_set():
                    return
                window = load.window
                skipped: dict[Chunk, StoreError] = {}
                futures = self._submit(load, buffer, skipped)
                try:
                    # The next window's order is worked out while this one loads.
                    load = self._next()
                finally:
                    self._finish(futures)
                if self._stop.is_set():
                    # Chunks were left out: this window is not whole.
                    return
                self._ready.put(LoadedWindow(window, buffer, skipped))
            if not self._stop.is_set():
                self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where it is asked for)
            if self._fetch is not None:
                self._fetch.stop()
            if not self._stop.is_set():
                # Otherwise it may be of what was cancelled.
                self._ready.put(error)

    def _next(self) -> WindowLoad | FetchedWindow | None:
        """Return the next window of the plan, from an object store on its way."""
        if self._fetch is not None:
            return self._fetch.next()
        return next(self._plan, None)

    def _submit(
        self,
        load: WindowLoad | FetchedWindow,
        buffer: WindowBuffer,
        skipped: dict[Chunk, StoreError],
    ) -> list[Future[None]]:
        """Begin to load chunks, at every plane; those that cannot be read are noted."""
        futures = []
        if isinstance(load, WindowLoad):
            for chunk in load.chunks:
                for plane in range(len(self._planes)):
                    cell = Cell(chunk, plane)
                    futures.append(
                        self._readers.submit(self._load, cell, buffer, skipped)
                    )
            return futures
        while (fetch := load.fetches.get()) is not None:
            futures.append(self._readers.submit(self._decode, fetch, buffer, skipped))
        return futures

    def _decode(
        self, fetch: Fetch, buffer: WindowBuffer, skipped: dict[Chunk, StoreError]
    ) -> None:
        """Wait for a request's answer and decode its chunks into their cells."""
        assert self._fetch is not None
        try:
            for number, cell in enumerate(fetch.cells):
                fetched = partial(fetch.chunk, number)
                self._load(cell, buffer, skipped, fetched)
        finally:
            self._fetch.done(fetch)

    def _load(
        self,
        cell: Cell,
        buffer: WindowBuffer,
        skipped: dict[Chunk, StoreError],
        fetched: Fetched | None = None,
    ) -> None:
        """Read one chunk into its cell, unless the feed is stopped."""
        if self._stop.is_set():
            return
        try:
            self._read(cell, buffer, fetched)
        except (CorruptError, ObjectError) as error:
            if not self._skip_corrupt:
                raise
            skipped[cell.chunk] = error

    def _read(self, cell: Cell, buffer: WindowBuffer, fetched: Fetched | None) -> None:
        """Read one chunk into its cell."""
        chunk, plane = cell
        site = self._planes[plane][chunk.column]
        chunk_rows = self._reader.codecs[0].chunk_rows
        first_row = chunk.cell * chunk_rows
        rows = slice(first_row, first_row + chunk_rows)
        values = buffer.values[plane][chunk.column, rows]
        self._reader.read(site, chunk.unit, chunk.chunk, values, fetched)
        if buffer.scale:
            scale, step = self._reader.int8_parts(site, chunk.unit, chunk.chunk)
            buffer.scale[plane][chunk.column, rows] = scale
            buffer.step[plane][chunk.column, chunk.cell] = step

    def _finish(self, futures: list[Future[None]]) -> None:
        """Wait for all reads; where one fails, none of the others runs on."""
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise


def _room(buffers: Sequence[WindowBuffer]) -> int:
    """Return how many bytes may have been fetched and not be decoded.

    They come on top of the windows' memory, so there are not more than of a window.
    """
    window_bytes = sum(values.nbytes for values in buffers[0].values)
    return min(FETCHED_BYTES, max(window_bytes, REQUEST_BYTES))
