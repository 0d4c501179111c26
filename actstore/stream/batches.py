"""The stream that users get: shuffled mixed-layer batches of a store, resumable, rescaled, on their device."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from actstore.errors import SpecError
from actstore.format.dtypes import to_torch
from actstore.harvesting.patterns import match_sites
from actstore.store import Store
from actstore.stream.feed import Loaded, WindowFeed
from actstore.stream.order import Chunk, Order, Window, mixing_shortfall, window_chunks
from actstore.stream.reader import ChunkReader
from actstore.stream.rescale import Rescaling, rescaling
from schemas.stream import StreamSpec, StreamState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Batch(NamedTuple):
    """x: [B, d]; layer: int64 [B], index into `Stream.sites`; row: int64 [B], row id in the store."""

    x: torch.Tensor
    layer: torch.Tensor
    row: torch.Tensor


class Stream(IterableDataset[Batch]):
    """Batches of a store in the order of `order.py`. Iterating again goes on; `restore` jumps.

    A torch `DataLoader(stream, batch_size=None)` accepts it too. `state()` describes the next batch to be delivered.
    `stall_s` is the time spent waiting for data.
    """

    def __init__(
        self,
        store: Store,
        spec: StreamSpec,
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if spec.lanes % world:
            raise SpecError(f"{world} ranks do not divide {spec.lanes} lanes; set `lanes` to a multiple of the ranks")
        self.store, self.spec, self.device = store, spec, torch.device(device)
        self.sites = tuple(match_sites(spec.sites or store.sites, store.sites))
        self._rank, self._world = rank, world
        self._threads = threads or min(8, os.cpu_count() or 1)
        self._reader = ChunkReader(store, self.sites)
        self.d = self._one_width()
        units = np.array(store.units(spec.split), np.int64)
        units = units[store.unit_rows[units] > 0] if len(units) else units
        if not len(units):
            raise SpecError(
                f"{store.url}: there are no {spec.split} rows; a store of fewer than 20 units has none held out"
            )
        self._units = units
        self.window_chunks = self._window_chunks()
        self._set_rescaling()
        self._epoch, self._batch, self._delivered = 0, 0, 0
        self.stall_s = 0.0
        self._feed: WindowFeed | None = None
        self._buffers: list[NDArray[Any]] = []
        self._order = self._order_of(0)
        self._loaded: Loaded | None = None
        self._rows: torch.Tensor | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch; the last may be smaller."""
        return self._order.n_batches

    @property
    def rows_per_epoch(self) -> int:
        """Rows of an epoch over all sites."""
        return self._order.n_elements

    @property
    def mixing_shortfall(self) -> float:
        """Share by which a batch falls short of an i.i.d. draw in distinct sequences (see `order.py`)."""
        return mixing_shortfall(self.store.layout, len(self._units), self.window_chunks, self.spec.batch)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.spec.limit_rows is not None and self._delivered >= self.spec.limit_rows:
            self._stop_feed()
            raise StopIteration
        if self._batch >= self._order.n_batches and not self._next_epoch():
            raise StopIteration
        parts = self._parts()
        batch = parts[0] if len(parts) == 1 else Batch(*(torch.cat(field) for field in zip(*parts, strict=True)))
        self._batch += 1
        self._delivered = self._elements_before(self._epoch, self._batch)
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Join all threads and free the windows. The stream can be iterated again; it goes on where it stopped."""
        self._stop_feed()
        self._buffers = []

    def state(self) -> StreamState:
        """Where the stream stands: the next batch."""
        store, spec = self._digests()
        return StreamState(store=store, spec=spec, epoch=self._epoch, batch=self._batch)

    def restore(self, state: StreamState) -> None:
        """Go on from a state. Raises SpecError where the store or the spec is another."""
        store, spec = self._digests()
        if state.store != store:
            raise SpecError(f"{self.store.url}: this state is of another store (its units or sites differ)")
        if state.spec != spec:
            raise SpecError("this state is of another StreamSpec (or of another window size); resume with the same one")
        self._stop_feed()
        self._epoch, self._batch = state.epoch, state.batch
        self._order = self._order_of(state.epoch)
        self._delivered = self._elements_before(state.epoch, state.batch)

    def _one_width(self) -> int:
        widths = {site: self.store.site(site).d for site in self.sites}
        if len(set(widths.values())) > 1:
            text = ", ".join(f"{site} ({d})" for site, d in widths.items())
            raise SpecError(f"mixed batches need sites of one width, but there are {text}; name some with `sites`")
        return next(iter(widths.values()))

    def _window_chunks(self) -> int:
        spec, codec = self.spec, self._reader.codecs[0]
        if spec.window_chunks is not None:
            return -(-spec.window_chunks // spec.lanes) * spec.lanes
        n_bytes = codec.chunk_rows * self.d * self._reader.dtype.itemsize
        return window_chunks(
            self.store.layout, len(self._units), len(self.sites), n_bytes, spec.batch, spec.lanes, spec.memory
        )

    def _set_rescaling(self) -> None:
        self.rescaling: Rescaling = rescaling(self.store, self.sites, self.spec.rescale, self.spec.center)
        plain = self.spec.rescale == "none" and not self.spec.center
        scale = torch.from_numpy(self.rescaling.scale).to(self.device, torch.float32)
        self._scale = None if plain else scale[:, None]
        mean = self.rescaling.mean
        self._mean = None if mean is None else torch.from_numpy(mean).to(self.device)

    def _order_of(self, epoch: int) -> Order:
        return Order(
            unit_ids=self._units,
            unit_rows=self.store.unit_rows[self._units].astype(np.int64),
            sites=tuple(self.store.sites.index(site) for site in self.sites),
            chunk_rows=self.store.layout.chunk_rows,
            window_chunks=self.window_chunks,
            lanes=self.spec.lanes,
            batch=self.spec.batch,
            seed=self.spec.seed,
            epoch=epoch,
        )

    def _elements_before(self, epoch: int, batch: int) -> int:
        return epoch * self._order.n_elements + min(batch * self.spec.batch, self._order.n_elements)

    def _next_epoch(self) -> bool:
        if self.spec.epochs is not None and self._epoch + 1 >= self.spec.epochs:
            self._stop_feed()
            return False
        self._stop_feed()
        self._epoch, self._batch = self._epoch + 1, 0
        self._order = self._order_of(self._epoch)
        return True

    def _parts(self) -> list[Batch]:
        """The batch, in as many parts as windows it lies in (seldom more than one)."""
        n, total = len(self.sites), self._order.n_elements
        first, last = self._batch * self.spec.batch, min((self._batch + 1) * self.spec.batch, total)
        parts = []
        while first < last:
            window = self._window(first // n)
            stop = min(last, (window.start + window.n_rows) * n)
            parts.append(self._gather(window, np.arange(first, stop)))
            first = stop
        return parts

    def _window(self, row: int) -> Window:
        """The window that holds a site's row; windows before it are given back."""
        if self._feed is None:
            self._feed = self._start_feed(row)
        while self._loaded is None or row >= self._loaded.window.start + self._loaded.window.n_rows:
            if self._loaded is not None:
                self._feed.release(self._loaded.rows)
                self._loaded = self._rows = None
            began = time.perf_counter()
            self._loaded = self._feed.get()
            self.stall_s += time.perf_counter() - began
            assert self._loaded is not None, "the order ended before the epoch"
            self._rows = self._on_device(self._loaded.rows)
        return self._loaded.window

    def _on_device(self, rows: NDArray[Any]) -> torch.Tensor:
        """The window as [n_sites * rows, d] where batches are gathered from: on a GPU it is copied there once."""
        flat = to_torch(rows.reshape(-1, self.d))
        return flat if self.device.type == "cpu" else flat.to(self.device)

    def _gather(self, window: Window, elements: NDArray[np.int64]) -> Batch:
        n = len(self.sites)
        site, p = elements % n, elements // n - window.start
        if self._world > 1:
            mine = window.lane[p] % self._world == self._rank
            site, p = site[mine], p[mine]
        slot = window.slot[site, p]
        layout = self.store.layout
        place, offset = np.divmod(slot, layout.chunk_rows)
        row = window.unit[site, place] * layout.capacity + window.chunk[site, place] * layout.chunk_rows + offset
        index = torch.from_numpy(site * (self.window_chunks * layout.chunk_rows) + slot)
        layer = torch.from_numpy(site).to(self.device)
        assert self._rows is not None
        x = self._rows.index_select(0, index.to(self.device))
        return Batch(self._scaled(x, layer), layer, torch.from_numpy(row).to(self.device))

    def _scaled(self, x: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        dtype = DTYPES[self.spec.dtype]
        if self._scale is None:
            return x.to(dtype)
        wide = x.to(torch.float32)
        if self._mean is not None:
            wide = wide - self._mean.index_select(0, layer)
        return wide.mul_(self._scale.index_select(0, layer)).to(dtype)

    def _start_feed(self, row: int) -> WindowFeed:
        if not self._buffers:
            rows = self.window_chunks * self.store.layout.chunk_rows
            shape = (len(self.sites), rows, self.d)
            self._buffers = [self._buffer(shape) for _ in range(2)]
        return WindowFeed(self._reader, self._plan(self._order, row), self._buffers, self._threads)

    def _buffer(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        """A window's memory, page-locked where batches go to a GPU."""
        if self.device.type != "cuda":
            return np.empty(shape, self._reader.dtype)
        n_bytes = int(np.prod(shape)) * self._reader.dtype.itemsize
        pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        view: NDArray[Any] = pinned.numpy().view(self._reader.dtype).reshape(shape)
        return view

    def _plan(self, order: Order, row: int) -> Iterator[tuple[Window, list[Chunk]]]:
        for group, number in order.windows(row):
            window = order.window(group, number)
            yield window, window.chunks(self._rank, self._world, self.spec.lanes)

    def _stop_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed, self._loaded, self._rows = None, None, None

    def _digests(self) -> tuple[str, str]:
        units = "".join(generation.units_digest for generation in self.store.manifest.generations)
        pinned = blake3(f"{units} {self.store.layout.to_json()} {self.sites}".encode()).hexdigest()
        spec = self.spec.model_copy(update={"memory": 1, "epochs": None, "limit_rows": None})
        return pinned, blake3(f"{spec.to_json()} {self.window_chunks}".encode()).hexdigest()
