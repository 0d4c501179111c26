"""Fetches the chunks of windows from an object store, before they are decoded.

There every request waits, so many are under way at a time: far more than there are
threads that decode. Requests begin in the order of the windows, and go on into windows
that have no memory yet, as long as what was fetched and not decoded stays within a
bound.

One thread goes through the plan and begins requests, a pool of threads waits for their
answers. Chunks of one shard that lie near each other are one request. Where a shard's
index is needed and not known, it is read first, some shards ahead.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from actstore.format.storage import Part
from actstore.machine.byte_room import ByteRoom
from actstore.store.chunk_reader import ChunkReader
from actstore.store.shard_bytes import ByteRange, joined_ranges
from actstore.stream.order import Chunk, Window
from actstore.stream.window_plan import WindowLoad

# Requests under way at a time.
REQUESTS = 32
# Bytes that were asked for and are not decoded yet.
FETCHED_BYTES = 64 << 20


class Cell(NamedTuple):
    """A chunk, and the plane of the window that it is read for."""

    chunk: Chunk
    plane: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """One request, and the cells that its answer fills.

    Attributes:
        cells: The chunks, all of one shard.
        n_bytes: The bytes of those chunks.
        answer: Their bytes, in the order of the cells.
    """

    cells: tuple[Cell, ...]
    n_bytes: int
    answer: Future[list[Part]]

    def chunk(self, number: int) -> Part:
        """Return the bytes of a cell's chunk, once they have come."""
        return self.answer.result()[number]


class FetchedWindow(NamedTuple):
    """A window, and its requests as they begin; None comes after the last."""

    window: Window
    fetches: queue.SimpleQueue[Fetch | None]


class ChunkFetch:
    """The windows of a plan, their chunks on the way."""

    def __init__(
        self,
        reader: ChunkReader,
        planes: Sequence[Sequence[int]],
        plan: Iterator[WindowLoad],
        most_bytes: int = FETCHED_BYTES,
        requests: int = REQUESTS,
    ) -> None:
        """Begin to fetch.

        Args:
            reader: What knows where the chunks lie.
            planes: Index of a site in the reader's sites, by plane and column.
            plan: The windows, and the chunks of each that are read.
            most_bytes: Bytes that may have been asked for and not given back by `done`.
                A request that is larger goes alone.
            requests: The most requests under way at a time.
        """
        self._reader = reader
        self._planes = planes
        self._plan = plan
        self._room = ByteRoom(most_bytes)
        self._requests = requests
        self._windows: queue.SimpleQueue[FetchedWindow | BaseException | None] = (
            queue.SimpleQueue()
        )
        # One window is planned ahead: each has the order of its rows in memory.
        self._ahead = threading.Semaphore(1)
        self._pool = ThreadPoolExecutor(requests, thread_name_prefix="stream-fetch")
        self._thread = threading.Thread(
            target=self._run, name="stream-requests", daemon=True
        )
        self._thread.start()

    def next(self) -> FetchedWindow | None:
        """Return the next window of the plan, whose requests begin; None: no more."""
        item = self._windows.get()
        if isinstance(item, BaseException):
            raise item
        self._ahead.release()
        return item

    def done(self, fetch: Fetch) -> None:
        """Make room for others: the answer is decoded, or of no use."""
        self._room.give_back(fetch.n_bytes)

    def stop(self) -> None:
        """Begin no more requests; the answers of those that wait are cancelled."""
        self._room.close()
        self._ahead.release()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop; requests under way have ended when this returns."""
        self.stop()
        self._pool.shutdown()
        self._thread.join()
        self._windows.put(None)

    def _run(self) -> None:
        """Begin requests, window by window: what the thread does."""
        try:
            while self._ahead.acquire() and not self._room.closed:
                load = next(self._plan, None)
                if load is None:
                    break
                fetches: queue.SimpleQueue[Fetch | None] = queue.SimpleQueue()
                self._windows.put(FetchedWindow(load.window, fetches))
                try:
                    self._begin(load.chunks, fetches)
                finally:
                    fetches.put(None)
            self._windows.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where it is asked for)
            self._windows.put(error)

    def _begin(
        self, chunks: list[Chunk], fetches: queue.SimpleQueue[Fetch | None]
    ) -> None:
        """Begin the requests of a window's chunks."""
        shards = self._shards(chunks)
        preparing = self._preparing(list(shards))
        for shard, cells in shards.items():
            try:
                prepared = next(preparing)
                if prepared is not None:
                    prepared.result()
                numbers = [cell.chunk.chunk for cell in cells]
                ranges = self._reader.byte_ranges(*shard, numbers)
            except Exception as error:  # noqa: BLE001 (raised again where it is decoded)
                fetches.put(_failed(cells, error))
                continue
            for one in joined_ranges(ranges):
                members = tuple(cells[position] for position in one.members)
                wanted = [ranges[position] for position in one.members]
                if not self._room.take(one.length):
                    return
                answer = self._pool.submit(self._fetch, *shard, wanted)
                fetches.put(Fetch(members, one.length, answer))

    def _preparing(
        self, shards: list[tuple[int, int]]
    ) -> Iterator[Future[None] | None]:
        """Yield when what each shard's chunks need will be read; None: it has been.

        That of some shards is read ahead, not of all: chunks of the first ones would
        wait for it.
        """
        ahead: deque[Future[None] | None] = deque()
        for shard in shards:
            is_prepared = self._reader.is_prepared(*shard)
            ahead.append(
                None if is_prepared else self._pool.submit(self._reader.prepare, *shard)
            )
            if len(ahead) > self._requests:
                yield ahead.popleft()
        yield from ahead

    def _shards(self, chunks: list[Chunk]) -> dict[tuple[int, int], list[Cell]]:
        """Return cells by shard: by number of the site, and unit."""
        shards: dict[tuple[int, int], list[Cell]] = {}
        for chunk in chunks:
            for plane, sites in enumerate(self._planes):
                shard = (sites[chunk.column], chunk.unit)
                shards.setdefault(shard, []).append(Cell(chunk, plane))
        return shards

    def _fetch(self, site: int, unit: int, ranges: list[ByteRange]) -> list[Part]:
        store = self._reader.store
        return store.shards.read(self._reader.sites[site], unit, ranges)


def _failed(cells: list[Cell], error: Exception) -> Fetch:
    """Return a request that cannot even begin."""
    answer: Future[list[Part]] = Future()
    answer.set_exception(error)
    return Fetch(tuple(cells), 0, answer)
