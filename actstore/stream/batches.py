"""The stream that users get: shuffled mixed-layer batches of a store, resumable, rescaled, on their device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import IterableDataset, get_worker_info

from actstore.errors import SpecError
from actstore.harvesting.patterns import match_sites
from actstore.store import Store
from actstore.stream.mixing import mixing_shortfall, window_chunks
from actstore.stream.order import Chunk, Order, Window
from actstore.stream.pool import Pool
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
    The last batch of an epoch, and of `limit_rows`, may be smaller. `device`: of the batches; `threads`: that read and
    decode; with `world` ranks each delivers its own lanes' rows of every batch.
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
        if not 0 <= rank < world:
            raise SpecError(f"rank {rank} of {world} ranks; ranks are 0 to {world - 1}")
        self.store, self.spec, self.device = store, spec, torch.device(device)
        self.sites = tuple(match_sites(spec.sites or store.sites, store.sites))
        self.d = _one_width(store, self.sites)
        self._rank, self._world = rank, world
        reader = ChunkReader(store, self.sites)
        self._order = _order(store, spec, self.sites, self.d * reader.dtype.itemsize)
        shape = (len(self.sites), self.window_chunks * store.layout.chunk_rows, self.d)
        self._pool = Pool(reader, shape, self.device, threads or _usable_cores())
        self._set_rescaling()
        self._epoch, self._batch = 0, 0

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch; the last may be smaller."""
        return self._order.n_batches

    @property
    def rows_per_epoch(self) -> int:
        """Rows of an epoch over all sites."""
        return self._order.n_elements

    @property
    def window_chunks(self) -> int:
        """Chunks per site that are in memory together."""
        return self._order.window_chunks

    @property
    def stall_s(self) -> float:
        """Seconds spent waiting for data."""
        return self._pool.stall_s

    @property
    def mixing_shortfall(self) -> float:
        """Share by which a batch falls short of an i.i.d. draw in distinct sequences (see `mixing.py`)."""
        n_units = len(self._order.unit_ids)
        return mixing_shortfall(self.store.layout, n_units, len(self.sites), self.window_chunks, self.spec.batch)

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise SpecError("a stream reads with threads of its own: give the DataLoader num_workers=0")
        return self

    def __next__(self) -> Batch:
        order = self._order
        if self._batch >= order.n_batches:
            self._epoch, self._batch = self._epoch + 1, 0
        first = self._batch * self.spec.batch
        last = min(first + self.spec.batch, order.n_elements)
        if self.spec.limit_rows is not None:
            last = min(last, self.spec.limit_rows - self._epoch * order.n_elements)
        if first >= last or (self.spec.epochs is not None and self._epoch >= self.spec.epochs):
            self._pool.stop()
            raise StopIteration
        if not self._pool.running:
            row = first // len(self.sites)
            self._pool.start(_plan(order, self._epoch, row, self.spec.epochs, (self._rank, self._world)))
        rows = self._pool.gather(self._epoch, first, last, (self._rank, self._world))
        self._batch += 1
        return Batch(self._scaled(rows.x, rows.site), rows.site, rows.row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self._pool.close()

    def close(self) -> None:
        """Join all threads and free the windows. The stream can be iterated again; it goes on where it stopped."""
        self._pool.close()

    def state(self) -> StreamState:
        """Where the stream stands: the next batch."""
        store, spec = self._digests
        return StreamState(store=store, spec=spec, epoch=self._epoch, batch=self._batch)

    def restore(self, state: StreamState) -> None:
        """Go on from a state. Raises SpecError where the store or the spec is another."""
        store, spec = self._digests
        if state.store != store:
            raise SpecError(
                f"{self.store.url}: this state is of another store (its units or sites differ); open the one that the "
                "stream was of"
            )
        if state.spec != spec:
            raise SpecError("this state is of another StreamSpec (or of another window size); resume with the same one")
        self._pool.stop()
        self._epoch, self._batch = state.epoch, state.batch

    def _set_rescaling(self) -> None:
        self.rescaling: Rescaling = rescaling(self.store, self.sites, self.spec.rescale, self.spec.center)
        plain = self.spec.rescale == "none" and not self.spec.center
        scale = torch.from_numpy(self.rescaling.scale).to(self.device, torch.float32)
        self._scale = None if plain else scale[:, None]
        mean = self.rescaling.mean
        self._mean = None if mean is None else torch.from_numpy(mean).to(self.device)

    def _scaled(self, x: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        dtype = DTYPES[self.spec.dtype]
        if self._scale is None:
            return x.to(dtype)
        wide = x.to(torch.float32)
        if self._mean is not None:
            wide = wide - self._mean.index_select(0, layer)
        return wide.mul_(self._scale.index_select(0, layer)).to(dtype)

    @cached_property
    def _digests(self) -> tuple[str, str]:
        """Of what a state pins: the units and sites; the spec but for what changes no batch, and the window."""
        units = "".join(generation.units_digest for generation in self.store.manifest.generations)
        pinned = blake3(f"{units} {self.store.layout.to_json()} {self.sites}".encode()).hexdigest()
        spec = self.spec.model_copy(update={"memory": 1, "epochs": None, "limit_rows": None, "window_chunks": None})
        return pinned, blake3(f"{spec.to_json()} {self.window_chunks}".encode()).hexdigest()


def _one_width(store: Store, sites: tuple[str, ...]) -> int:
    widths = {site: store.site(site).d for site in sites}
    if len(set(widths.values())) > 1:
        text = ", ".join(f"{site} ({d})" for site, d in widths.items())
        raise SpecError(f"mixed batches need sites of one width, but there are {text}; name some with `sites`")
    return next(iter(widths.values()))


def _order(store: Store, spec: StreamSpec, sites: tuple[str, ...], row_bytes: int) -> Order:
    units = np.array(store.units(spec.split), np.int64)
    units = units[store.unit_rows[units] > 0] if len(units) else units
    if not len(units):
        raise SpecError(
            f"{store.url}: there are no {spec.split} rows; a store of fewer than 20 units has none held out"
        )
    chunk_bytes = store.layout.chunk_rows * row_bytes
    return Order(
        layout=store.layout,
        unit_ids=units,
        unit_rows=store.unit_rows[units].astype(np.int64),
        sites=tuple(store.sites.index(site) for site in sites),
        window_chunks=window_chunks(store.layout, len(units), len(sites), chunk_bytes, spec),
        lanes=spec.lanes,
        batch=spec.batch,
        seed=spec.seed,
    )


def _plan(
    order: Order, epoch: int, row: int, epochs: int | None, lanes: tuple[int, int]
) -> Iterator[tuple[Window, list[Chunk]]]:
    """Windows and the chunks to load for them, over the ends of epochs. Holds no stream: it may outlive one."""
    while epochs is None or epoch < epochs:
        for window in order.windows(epoch, row):
            yield window, window.chunks(*lanes, order.lanes)
        epoch, row = epoch + 1, 0


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)
