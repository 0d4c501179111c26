"""Our stream's order and windows, with other packages reading the chunks: what a
careful user would write without us.

Two window buffers, a thread that loads the next window while batches are gathered from
this one, and one `take` per batch. The order comes from `actstore.stream.order`, so
every loader here delivers our stream's rows, batch by batch.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.format.stored_dtypes import to_torch
from actstore.store.store import Store
from actstore.stream.chunk_fetch import REQUESTS
from actstore.stream.group_cells import default_group_units
from actstore.stream.order import Chunk, Order, Rank, Window
from actstore.stream.unit_source import FinishedUnits
from actstore.stream.window_plan import windows_of_epoch
from tests.benchmarks.servers.raw_requests import s3_store

Read = Callable[[list[Chunk], NDArray[Any]], None]
# keeps shard indexes; the store decoded in memory would be another benchmark
TENSORSTORE_CACHE = 64 << 20


class WindowLoader:
    """Endless batches [B, d] in our stream's order. `read(chunks, window)` fills a
    buffer [n_sites, rows, d].
    """

    def __init__(
        self, store: Store, read: Read, window_chunks: int, batch: int, seed: int = 0
    ) -> None:
        units = np.array(store.units("train"), np.int64)
        rows = store.unit_rows[units].astype(np.int64)
        sites = tuple(range(len(store.sites)))
        self.batch = batch
        self.units = FinishedUnits(units, rows, seed, default_group_units(store.layout))
        self.order = Order(store.layout, sites, window_chunks, lanes=8, seed=seed)
        codec = store.codec(store.sites[0])
        shape = (len(sites), window_chunks * codec.chunk_rows, codec.d)
        self._read = read
        self._free: queue.Queue[NDArray[Any] | None] = queue.Queue()
        self._ready: queue.Queue[tuple[Window, NDArray[Any]] | BaseException] = (
            queue.Queue()
        )
        for _ in range(2):
            self._free.put(np.empty(shape, codec.dtype))
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()
        self._batches = self._gathered()

    def __next__(self) -> torch.Tensor:
        return next(self._batches)

    def close(self) -> None:
        """Join the thread."""
        self._free.put(None)
        self._thread.join()

    def _load(self) -> None:
        try:
            for window in self._windows():
                buffer = self._free.get()
                if buffer is None:
                    return
                chunks = window.chunks(Rank(0, 1), self.order.lanes)
                self._read(chunks, buffer)
                self._ready.put((window, buffer))
        except BaseException as error:  # noqa: BLE001 (raised again where the window is asked for)
            self._ready.put(error)

    def _windows(self) -> Iterator[Window]:
        epoch = 0
        while True:
            yield from windows_of_epoch(self.order, self.units, epoch)
            epoch += 1

    def _gathered(self) -> Iterator[torch.Tensor]:
        left: list[torch.Tensor] = []  # of a batch that began in the window before
        epoch = 0
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            window, buffer = item
            if left and window.epoch != epoch:
                yield torch.cat(left)  # an epoch's last batch may be smaller
                left = []
            epoch = window.epoch
            rows, source, first = (
                buffer.reshape(-1, buffer.shape[-1]),
                window.source.reshape(-1),
                0,
            )
            while first < len(source):
                here = source[first : first + self.batch - sum(map(len, left))]
                left.append(gather(rows, here))
                first += len(here)
                if sum(map(len, left)) == self.batch:
                    yield left[0] if len(left) == 1 else torch.cat(left)
                    left = []
            self._free.put(buffer)


def gather(rows: NDArray[Any], index: NDArray[np.int64]) -> torch.Tensor:
    """rows[index], in 8-byte words and unchecked as in our stream: faster than torch's
    beside threads that decode.
    """
    out = np.empty((len(index), rows.shape[1]), rows.dtype)
    np.take(rows.view("i8"), index, axis=0, out=out.view("i8"), mode="clip")
    return to_torch(out)


def tensorstore_reader(store: Store, threads: int) -> Read:
    """All chunks of a window asked for at once, each written into its place; `threads`
    decode.

    The fastest of the ways tried: fresh arrays, and one chunk at a time per thread,
    were slower; so was no cache pool.
    """
    import tensorstore

    context = tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": TENSORSTORE_CACHE},
            "data_copy_concurrency": {"limit": threads},
            "file_io_concurrency": {"limit": 8},
            "s3_request_concurrency": {"limit": REQUESTS},
        }
    )
    once = {"recheck_cached_data": False, "recheck_cached_metadata": False}
    specs = [
        {"driver": "zarr3", "kvstore": _kvstore(store, site)} | once
        for site in store.sites
    ]
    arrays = [
        tensorstore.open(spec, context=context, read=True).result() for spec in specs
    ]

    def read(chunks: list[Chunk], window: NDArray[Any]) -> None:
        def begun(one: Chunk) -> Any:
            there, here = _places(store, one)
            return tensorstore.array(window[one.column, here]).write(
                arrays[one.column][there]
            )

        for future in [begun(one) for one in chunks]:
            future.result()

    return read


def zarr_reader(store: Store, threads: int) -> Read:
    """zarr-python, `threads` chunks at a time (over a server, as many as our stream
    has requests), each into its place: faster than its async API's gather.
    """
    import zarr
    from zarr.buffer.cpu import NDBuffer
    from zarr.core import codec_pipeline

    import actstore.format.zarr_bfloat16  # noqa: F401 (registers the data type)

    # Newer versions have a faster pipeline, which is not yet their default.
    if hasattr(codec_pipeline, "FusedCodecPipeline"):
        path = "zarr.core.codec_pipeline.FusedCodecPipeline"
        zarr.config.set({"codec_pipeline.path": path})
    arrays = [
        zarr.open_array(_zarr_store(store, site), mode="r") for site in store.sites
    ]
    is_local = store.storage.local is not None
    pool = ThreadPoolExecutor(threads if is_local else REQUESTS)

    def read(chunks: list[Chunk], window: NDArray[Any]) -> None:
        def one(chunk: Chunk) -> None:
            there, here = _places(store, chunk)
            arrays[chunk.column].get_basic_selection(
                there, out=NDBuffer(window[chunk.column, here])
            )

        list(pool.map(one, chunks))

    return read


def _kvstore(store: Store, site: str) -> dict[str, Any]:
    """Where tensorstore finds a site's array."""
    folder = store.storage.local
    if folder is not None:
        return {"driver": "file", "path": str(folder / "acts" / site)}
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    return {
        "driver": "s3",
        "bucket": bucket,
        "path": f"{prefix}/acts/{site}/",
        "endpoint": os.environ["AWS_ENDPOINT_URL"],
        "aws_region": "us-east-1",
    }


def _zarr_store(store: Store, site: str) -> Any:
    """Where zarr-python finds a site's array: by obstore, its fastest way to S3."""
    folder = store.storage.local
    if folder is not None:
        return str(folder / "acts" / site)
    from zarr.storage import ObjectStore

    return ObjectStore(s3_store(f"{store.url}/acts/{site}"), read_only=True)


def _places(store: Store, one: Chunk) -> tuple[slice, slice]:
    """Rows of the site's array, and of the site's part of the window."""
    rows = store.layout.chunk_rows
    first, place = one.unit * store.layout.capacity + one.chunk * rows, one.cell * rows
    return slice(first, first + rows), slice(place, place + rows)
