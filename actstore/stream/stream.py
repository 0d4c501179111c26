"""The stream that users get: shuffled mixed-layer batches of a store, resumable,
rescaled, on their device.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Literal, NamedTuple, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from actstore.console.notebook import table
from actstore.errors import NoRowsError, SpecError
from actstore.store.chunk_reader import ChunkReader
from actstore.store.followed import FollowedStore
from actstore.store.store import Store
from actstore.stream.columns import columns_of
from actstore.stream.gather import GatheredRows, WindowGatherer
from actstore.stream.mixing import Mix, mixing_shortfall
from actstore.stream.rescale import Rescaling, rescaling
from actstore.stream.stream_setup import digests, load_plan, order_of, pinned
from schemas.stream import STATE_VERSION, StreamSpec, StreamState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BOUND = 0.05  # a shortfall above this is worth a warning


class StreamWarning(UserWarning):
    """Something that a user of a stream should know: poor mixing, rows skipped."""


class Batch(NamedTuple):
    """x: [B, d] (aligned: [B, n_sites, d]); layer: int64 [B], index into `Stream.sites`
    (aligned: 0); row: int64 [B], row id in the store; target: in pair mode [B,
    d_target], the output sites' rows of the same tokens; batch_position: int64 [B], on
    the host, ascending: where each row is in the batch of all ranks.
    """

    x: torch.Tensor
    layer: torch.Tensor
    row: torch.Tensor
    target: torch.Tensor | None = None
    batch_position: torch.Tensor | None = None


class Stream(IterableDataset[Batch]):
    """Batches of a store in the order of `order.py`. Iterating again goes on; `restore`
    jumps.

    A torch `DataLoader(stream, batch_size=None)` accepts it too. `state()` describes
    the next batch to be delivered. The last batch of an epoch, of `limit_rows`, and the
    first behind `skip_rows` may be smaller. `device`: of the batches; `threads`: that
    read and decode; with `world` ranks each delivers its own lanes' rows of every
    batch; `on_corrupt`: "skip" leaves the rows of chunks that cannot be read out of
    their batches, warns, and counts them in `skipped_rows`.
    """

    _pool: WindowGatherer
    _mix: Mix

    def __init__(
        self,
        store: Store,
        spec: StreamSpec,
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        rank: int = 0,
        world: int = 1,
        on_corrupt: Literal["error", "skip"] = "error",
    ) -> None:
        if spec.lanes % world:
            raise SpecError(
                f"{world} ranks do not divide {spec.lanes} lanes; set `lanes` to a"
                " multiple of the ranks"
            )
        if not 0 <= rank < world:
            raise SpecError(f"rank {rank} of {world} ranks; ranks are 0 to {world - 1}")
        if spec.follow and not isinstance(store, FollowedStore):
            raise SpecError(
                f"{store.url}: to `follow` a store, open it so: actstore.open(url,"
                " follow=True)"
            )
        self.spec, self.device = spec, torch.device(device)
        self._rank, self._world = rank, world
        self._threads, self._skip = threads or _usable_cores(), on_corrupt == "skip"
        self._epoch, self._batch, self._told = 0, 0, 0
        self._open(store)
        if spec.skip_rows:
            self._epoch, first = self._after(spec.skip_rows)
            self._batch = first // spec.batch
        # with all of them in memory there is nothing to gain
        chunks = self._mix.group * store.layout.unit_chunks
        if (
            spec.window_chunks is None
            and self.window_chunks < chunks
            and self.mixing_shortfall > BOUND
        ):
            warnings.warn(
                f"{store.url}: a batch of {spec.batch} rows holds"
                f" {self.mixing_shortfall:.0%} fewer distinct sequences than an i.i.d."
                f" draw (windows of {self.window_chunks} chunks); give `memory` for"
                " larger windows, or smaller batches",
                StreamWarning,
                stacklevel=2,
            )

    def _open(self, store: Store) -> None:
        """All that depends on which units and sites there are."""
        if hasattr(self, "_pool"):
            self._pool.close()
        self.store, self.columns = store, columns_of(store, self.spec)
        self.sites, self.targets = self.columns.sites, self.columns.targets
        widths = self.columns.widths(store)
        self.d, self.d_target = widths[0], widths[1] if self.targets else None
        names = tuple(
            dict.fromkeys(name for plane in self.columns.planes for name in plane)
        )
        reader = ChunkReader(store, names)
        self._mix, self._order = order_of(
            store, self.spec, self.columns, reader.dtype.itemsize
        )
        planes = [
            [names.index(name) for name in plane] for plane in self.columns.planes
        ]
        rows = self.window_chunks * store.layout.chunk_rows
        label, skip = self.columns.label, self._skip
        self._pool = WindowGatherer(
            reader, planes, label, rows, self.device, self._threads, skip_corrupt=skip
        )
        self._set_rescaling()
        self._digests = digests(store, self.spec, self.columns, self.window_chunks)

    def __repr__(self) -> str:
        return (
            f"Stream({self.store.url!r}:"
            f" {', '.join(f'{name} {value}' for name, value in self._described())})"
        )

    def _repr_html_(self) -> str:
        return table(f"Stream of {self.store.url}", self._described())

    def _described(self) -> list[tuple[str, str]]:
        spec, names = self.spec, self.sites
        sites = ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
        widths = f"d {self.d}" + (
            "" if self.d_target is None else f" to {self.d_target}"
        )
        centred = ", centred" if spec.center else ""
        return [
            ("mode", spec.mode),
            ("sites", f"{len(names)} of {widths} ({sites})"),
            ("batch", f"{spec.batch:,} rows of {spec.dtype} on {self.device}"),
            ("rescale", f"{spec.rescale}{centred}"),
            (
                "epoch",
                (
                    f"{self.rows_per_epoch:,} {spec.split} rows in"
                    f" {self.batches_per_epoch:,} batches"
                ),
            ),
            ("next", f"batch {self._batch} of epoch {self._epoch}"),
        ]

    def held_out(self) -> Stream | None:
        """One epoch of the store's held-out rows, read as this stream is; None where
        there are none, or not yet, or where its filter leaves none.
        """
        if self.spec.follow or not self.store.units("held_out"):
            return None
        spec = self.spec.model_copy(
            update={
                "split": "held_out",
                "epochs": 1,
                "skip_rows": 0,
                "limit_rows": None,
                "window_chunks": None,
            }
        )
        with warnings.catch_warnings(), suppress(NoRowsError):
            # how well these rows are mixed does not matter
            warnings.simplefilter("ignore", StreamWarning)
            return Stream(
                self.store,
                spec,
                device=self.device,
                threads=self._threads,
                rank=self._rank,
                world=self._world,
                on_corrupt="skip" if self._skip else "error",
            )
        return None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch; the last may be smaller. A stream that follows
        tells what is planned.
        """
        return (
            self._order.batches(0)
            if not self.spec.follow
            else -(-self.rows_per_epoch // self.spec.batch)
        )

    @property
    def rows_per_epoch(self) -> int:
        """GatheredRows of the first epoch over all sites (pairs and aligned rows count
        once). Following: what is planned.
        """
        if self.spec.follow:
            layout = self.store.layout
            return (
                len(self._order.unit_ids)
                * layout.unit_sequences
                * layout.context
                * len(self.columns.label)
            )
        return self._order.elements(0)

    def rows_in(self, batches: int) -> int:
        """GatheredRows of the stream's first batches; the last one of an epoch, and the
        first behind `skip_rows`, may be smaller. Following: at most so many.
        """
        order, size = self._order, self.spec.batch
        if self.spec.follow:
            return batches * size
        (epoch, first), rows = self._after(self.spec.skip_rows), 0
        while batches > 0:
            left = order.batches(epoch) - first // size
            # whole epochs, which are all alike
            if order.copies == 1 and first == 0 and batches > left:
                whole = batches // left
                rows, batches = (
                    rows + whole * order.elements(epoch),
                    batches - whole * left,
                )
                continue
            rows += min((first // size + batches) * size, order.elements(epoch)) - first
            epoch, first, batches = epoch + 1, 0, batches - left
        return rows

    @property
    def window_chunks(self) -> int:
        """Chunks per column that are in memory together."""
        return self._order.window_chunks

    @property
    def stall_s(self) -> float:
        """Seconds spent waiting for data."""
        return self._pool.stall_s

    @property
    def skipped_rows(self) -> int:
        """GatheredRows lost so far to chunks that could not be read
        (`on_corrupt="skip"`), over all columns.
        """
        return sum(
            self._order.chunk_rows(chunk.unit, chunk.chunk)
            for chunk in self._pool.skipped
        )

    @property
    def mixing_shortfall(self) -> float:
        """Share by which a batch falls short of an i.i.d. draw in distinct sequences
        (see `mixing.py`).
        """
        return mixing_shortfall(self._mix, self.window_chunks, self.spec.batch)

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise SpecError(
                "a stream reads with threads of its own: give the DataLoader"
                " num_workers=0"
            )
        return self

    def __next__(self) -> Batch:
        order, spec = self._order, self.spec
        if not spec.follow and self._batch >= order.batches(self._epoch):
            self._epoch, self._batch = self._epoch + 1, 0
        first, last = self._batch * spec.batch, (self._batch + 1) * spec.batch
        if not spec.follow:
            last = min(last, order.elements(self._epoch))
        if spec.skip_rows and (at := self._after(spec.skip_rows))[0] == self._epoch:
            first = max(first, at[1])
        if spec.limit_rows is not None:
            end = self._after(spec.skip_rows + spec.limit_rows)
            last = (
                min(last, end[1])
                if end[0] == self._epoch
                else last
                if self._epoch < end[0]
                else first
            )
        epochs = 1 if spec.follow else spec.epochs
        if first >= last or (epochs is not None and self._epoch >= epochs):
            self._pool.stop()
            raise StopIteration
        if not self._pool.running:
            row = first // len(self.columns.label)
            self._pool.start(
                partial(
                    load_plan,
                    order,
                    self._epoch,
                    row,
                    epochs,
                    (self._rank, self._world),
                )
            )
        rows = self._pool.gather(self._epoch, first, last, (self._rank, self._world))
        if not rows.planes:  # behind the end of a harvest that was followed
            self._pool.stop()
            raise StopIteration
        self._batch += 1
        self._tell_skipped()
        return self._batched(rows)

    def _after(self, rows: int) -> tuple[int, int]:
        """(epoch, element) behind so many rows of the stream."""
        epoch = 0
        if self._order.copies == 1 and not self.spec.follow:
            epoch = min(rows // self._order.elements(0), self.spec.epochs or rows)
            return epoch, rows - epoch * self._order.elements(0)
        while (
            not self.spec.follow
            and rows >= self._order.elements(epoch)
            and epoch != (self.spec.epochs or -1)
        ):
            rows -= self._order.elements(epoch)
            epoch += 1
        return epoch, rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the process ends, its threads have ended, and so have the modules that
        # closing needs.
        if hasattr(self, "_pool") and not _exiting():
            self._pool.close()

    def close(self) -> None:
        """Join all threads and free the windows. The stream can be iterated again; it
        goes on where it stopped.
        """
        self._pool.close()

    def tensors(self) -> Iterator[torch.Tensor]:
        """The batches' x alone: what SAELens (6 and later) takes as a data provider,
        and any plain training loop.
        """
        for batch in self:
            yield batch.x

    def state(self) -> StreamState:
        """Where the stream stands: the next batch."""
        store, spec = self._digests
        return StreamState(store=store, spec=spec, epoch=self._epoch, batch=self._batch)

    def restore(self, state: StreamState) -> None:
        """Go on from a state. A store that was extended since is read as it was (see
        `Store.before`).

        Raises SpecError where the store or the spec is another; the stream is then as
        it was.
        """
        if state.version != STATE_VERSION:
            raise SpecError(
                f"this state is of version {state.version}, this actstore knows"
                f" {STATE_VERSION}; upgrade it"
            )
        newest = self.store
        if state.store != self._digests[0]:
            self._open(pinned(self.store, self.spec, state))
        beyond = not self.spec.follow and state.batch > self._order.batches(state.epoch)
        if state.spec != self._digests[1] or beyond:
            if self.store is not newest:
                self._open(newest)
            what = (
                "its batch is behind the epoch's end"
                if beyond
                else "it is of another StreamSpec or window size"
            )
            raise SpecError(
                f"this state does not fit: {what}; resume with the spec that the"
                " stream had"
            )
        self._pool.stop()
        self._epoch, self._batch = state.epoch, state.batch

    def _tell_skipped(self) -> None:
        if len(self._pool.skipped) > self._told:
            self._told = len(self._pool.skipped)
            last = next(reversed(self._pool.skipped.values()))
            warnings.warn(
                f"skipped {self._told} chunks that cannot be read,"
                f" {self.skipped_rows:,} rows so far; the last: {last}",
                StreamWarning,
                stacklevel=3,
            )

    def _set_rescaling(self) -> None:
        """One rescaling for each plane's kind of rows: the sites, and in pair mode the
        targets.
        """
        kind, center = self.spec.rescale, bool(self.spec.center)
        self.rescaling: Rescaling = rescaling(self.store, self.sites, kind, center)
        self.target_rescaling = (
            None
            if self.targets is None
            else rescaling(self.store, self.targets, kind, center)
        )
        self._factors = [
            (
                None
                if one is None or (kind == "none" and not center)
                else one.tensors(self.device)
            )
            for one in (self.rescaling, self.target_rescaling)
        ]

    def _batched(self, rows: GatheredRows) -> Batch:
        planes, layer, row, batch_position = rows
        if self.spec.mode == "aligned":
            sites = torch.arange(len(self.sites), device=self.device)
            parts = [self._scaled(x, sites[i : i + 1], 0) for i, x in enumerate(planes)]
            return Batch(torch.stack(parts, dim=1), layer, row, None, batch_position)
        target = self._scaled(planes[1], layer, 1) if self.targets is not None else None
        return Batch(
            self._scaled(planes[0], layer, 0), layer, row, target, batch_position
        )

    def _scaled(self, x: torch.Tensor, layer: torch.Tensor, part: int) -> torch.Tensor:
        """x [n, d] as it is delivered; layer: [n], or [1] for all rows."""
        dtype, factors = DTYPES[self.spec.dtype], self._factors[part]
        if factors is None:
            return x.to(dtype)
        scale, mean = factors
        wide = x.to(torch.float32)
        if mean is not None:
            wide = wide - mean.index_select(0, layer)
        return (wide * scale.index_select(0, layer)).to(dtype)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)
