"""The stream that users get: shuffled batches of a store, of one layer or several.

It is resumable, and its batches are rescaled and on the user's device.
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
from actstore.console.short_lists import first_and_last
from actstore.console.user_warnings import warn
from actstore.errors import NoRowsError, SpecError
from actstore.store.chunk_reader import ChunkReader
from actstore.store.streamed_store import StreamedStore
from actstore.stream.columns import columns_of
from actstore.stream.cursor import Cursor, Stretch
from actstore.stream.gather import GatheredRows, WindowGatherer
from actstore.stream.mixing import mixing_shortfall
from actstore.stream.order import Rank
from actstore.stream.order_from_spec import StreamOrder, order_from_spec
from actstore.stream.rescale import Rescaling, rescaling
from actstore.stream.state_digests import state_digests, store_of_state
from actstore.stream.window_plan import (
    elements_of_epoch,
    planned_elements,
    planned_loads,
)
from schemas.stream import STATE_VERSION, StreamSpec, StreamState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A shortfall of distinct sequences above this share is worth a warning: more than twice
# what windows are planned for (`mixing.TARGET`).
POOR_MIXING = 0.05
# Threads that read and decode, unless a user says otherwise: at most so many.
MOST_THREADS = 8

Factors = tuple[torch.Tensor, torch.Tensor | None]
"""Scale, float32 [n_sites, 1], and mean, float32 [n_sites, d], on the device."""


class StreamWarning(UserWarning):
    """Something that a user of a stream should know: poor mixing, rows skipped."""


class Batch(NamedTuple):
    """The rows that a stream gives at a time, and where they come from.

    Attributes:
        x: Rows, [B, d]; aligned: [B, n_sites, d].
        layer: Index of each row's site in `Stream.sites`, int64 [B]; aligned: 0.
        row: Row ids in the store, int64 [B].
        target: In pair mode, the output sites' rows of the same tokens, [B, d_target].
        batch_position: Where each row is in the batch of all ranks, ascending, int64
            [B], on the host.
    """

    x: torch.Tensor
    layer: torch.Tensor
    row: torch.Tensor
    target: torch.Tensor | None = None
    batch_position: torch.Tensor | None = None


class Stream(IterableDataset[Batch]):
    """Batches of a store, in the order that `order.py` describes.

    Iterating again goes on where the stream stands; `restore` jumps. `state()`
    describes the next batch to be delivered. The last batch of an epoch, of
    `limit_rows`, and the first after `skip_rows` may be smaller. A torch
    `DataLoader(stream, batch_size=None)` accepts a stream too.

    Attributes:
        spec: What was asked for.
        device: Where the batches are.
        store: The store; after `restore`, as it was when the state was taken.
        columns: What its columns read.
        sites: Names of the sites that `Batch.layer` counts.
        targets: In pair mode, the output sites; None otherwise.
        d: Width of `Batch.x`.
        d_target: Width of `Batch.target`; None outside of pair mode.
        rescaling: What is done to the rows of `sites`.
        target_rescaling: What is done to the rows of `targets`.
    """

    _gatherer: WindowGatherer
    _cursor: Cursor
    _ordering: StreamOrder

    def __init__(
        self,
        store: StreamedStore,
        spec: StreamSpec,
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        rank: int = 0,
        world: int = 1,
        on_corrupt: Literal["error", "skip"] = "error",
    ) -> None:
        """Stand at the beginning; nothing is read until the first batch is asked for.

        Args:
            store: The store to stream.
            spec: What to stream of it.
            device: Where the batches are to be.
            threads: How many read and decode; None: one per core, 8 at most.
            rank: The number of this process; it delivers its own lanes' rows of every
                batch.
            world: How many processes share the batches.
            on_corrupt: "skip" leaves the rows of chunks that cannot be read out of
                their batches, warns, and counts them in `skipped_rows`.

        Raises:
            SpecError: The spec, the store and the ranks do not go together.
        """
        if spec.lanes % world:
            raise SpecError(
                f"{world} ranks do not divide {spec.lanes} lanes; set `lanes` to a"
                " multiple of the ranks"
            )
        if not 0 <= rank < world:
            raise SpecError(f"rank {rank} of {world} ranks; ranks are 0 to {world - 1}")
        self.spec = spec
        self.device = _device(device)
        self._rank = Rank(rank, world)
        self._threads = threads or _usable_cores()
        self._skip_corrupt = on_corrupt == "skip"
        # Chunks that a warning has told of.
        self._n_told = 0
        self._open(store)
        self._warn_of_poor_mixing()

    def _open(self, store: StreamedStore) -> None:
        """Set up all that depends on which units and sites there are."""
        if hasattr(self, "_gatherer"):
            self._gatherer.close()
        self.store = store
        self.columns = columns_of(store, self.spec)
        self.sites = self.columns.sites
        self.targets = self.columns.targets
        widths = self.columns.widths(store)
        self.d = widths[0]
        self.d_target = None if self.targets is None else widths[1]
        names = self.columns.names
        reader = ChunkReader(store.objects, names)
        self._ordering = order_from_spec(
            store, self.spec, self.columns, reader.dtype.itemsize
        )
        planes = self.columns.planes
        sites_by_plane = [[names.index(name) for name in plane] for plane in planes]
        chunk_bytes = sum(
            reader.codecs[site].chunk_bytes
            for plane in sites_by_plane
            for site in plane
        )
        store.objects.shards.check_windows(self.window_chunks * chunk_bytes)
        self._gatherer = WindowGatherer(
            reader,
            sites_by_plane,
            self.columns.label,
            self.window_chunks * store.layout.chunk_rows,
            self.device,
            self._threads,
            skip_corrupt=self._skip_corrupt,
        )
        self._set_rescaling()
        self._digests = state_digests(
            store, self.spec, self.columns, self.window_chunks
        )
        self._cursor = self._new_cursor()

    def _new_cursor(self) -> Cursor:
        """Return a cursor at the beginning of the stream."""
        spec = self.spec
        ordering = self._ordering
        # For units that a harvest still adds, only what is planned is known.
        count_elements = planned_elements if spec.follow else elements_of_epoch
        return Cursor(
            partial(count_elements, ordering.order, ordering.units),
            batch_rows=spec.batch,
            epochs=self._epochs,
            # Where a site has several columns, some chunks may be left over in each
            # group, and the groups differ by epoch.
            epochs_are_alike=ordering.order.cells.copies == 1,
            skip_rows=spec.skip_rows,
            limit_rows=spec.limit_rows,
            following=spec.follow,
        )

    @property
    def _epochs(self) -> int | None:
        """The stream's number of epochs: a harvest is followed once."""
        return 1 if self.spec.follow else self.spec.epochs

    def _warn_of_poor_mixing(self) -> None:
        """Warn where larger windows or smaller batches would mix visibly better."""
        group_chunks = self._ordering.mix.group * self.store.layout.unit_chunks
        if self.spec.window_chunks is not None or self.window_chunks >= group_chunks:
            # The window is the user's wish, or holds all there is to mix.
            return
        if self.mixing_shortfall > POOR_MIXING:
            warn(
                f"{self.store.url}: a batch of {self.spec.batch} rows holds"
                f" {self.mixing_shortfall:.0%} fewer distinct sequences than an i.i.d."
                f" draw (windows of {self.window_chunks} chunks); give `memory` for"
                " larger windows, or smaller batches",
                StreamWarning,
            )

    def __repr__(self) -> str:
        described = ", ".join(f"{name} {value}" for name, value in self._described())
        return f"Stream({self.store.url!r}: {described})"

    def _repr_html_(self) -> str:
        return table(f"Stream of {self.store.url}", self._described())

    def _described(self) -> list[tuple[str, str]]:
        """Return what the stream is, in lines for people: (name, value)."""
        spec = self.spec
        names = self.sites
        widths = f"d {self.d}"
        if self.d_target is not None:
            widths += f" to {self.d_target}"
        centred = ", centred" if spec.center else ""
        epoch = (
            f"{self.rows_per_epoch:,} {spec.split} rows in"
            f" {self.batches_per_epoch:,} batches"
        )
        return [
            ("mode", spec.mode),
            ("sites", f"{len(names)} of {widths} ({first_and_last(names)})"),
            ("batch", f"{spec.batch:,} rows of {spec.dtype} on {self.device}"),
            ("rescale", f"{spec.rescale}{centred}"),
            ("epoch", epoch),
            ("next", f"batch {self._cursor.batch} of epoch {self._cursor.epoch}"),
        ]

    def held_out(self) -> Stream | None:
        """Return one epoch of the store's held-out rows, read as this stream is.

        None where there are none, or not yet, or where the filter leaves none.
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
            # How well these rows are mixed does not matter.
            warnings.simplefilter("ignore", StreamWarning)
            return Stream(
                self.store,
                spec,
                device=self.device,
                threads=self._threads,
                rank=self._rank.number,
                world=self._rank.world,
                on_corrupt="skip" if self._skip_corrupt else "error",
            )
        return None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch; the last may be smaller.

        Where the stream follows a harvest: what is planned.
        """
        return self._cursor.batches_in(0)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first epoch over all sites (pairs and aligned rows count once).

        Where the stream follows a harvest: what is planned.
        """
        return self._cursor.elements_in(0)

    def rows_in(self, batches: int) -> int:
        """Return the rows of the stream's first batches.

        The last one of an epoch, and the first after `skip_rows`, may be smaller. Where
        the stream follows a harvest: at most so many.
        """
        return self._cursor.rows_in(batches)

    @property
    def window_chunks(self) -> int:
        """Chunks per column that are in memory together."""
        return self._ordering.order.window_chunks

    @property
    def stall_s(self) -> float:
        """Seconds spent waiting for data."""
        return self._gatherer.stall_s

    @property
    def skipped_rows(self) -> int:
        """Rows lost so far to chunks that could not be read, over all columns.

        (`on_corrupt="skip"`)
        """
        units = self._ordering.units
        order = self._ordering.order
        n_rows = 0
        for chunk in self._gatherer.skipped:
            unit_rows = units.rows_in(chunk.unit)
            n_rows += order.cells.rows_of_chunk(chunk.unit, chunk.chunk, unit_rows)
        return n_rows

    @property
    def mixing_shortfall(self) -> float:
        """The share by which a batch falls short of an i.i.d. draw (see `mixing.py`).

        It is a share of the distinct sequences in the batch.
        """
        return mixing_shortfall(self._ordering.mix, self.window_chunks, self.spec.batch)

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise SpecError(
                "a stream reads with threads of its own: give the DataLoader"
                " num_workers=0"
            )
        return self

    def __next__(self) -> Batch:
        stretch = self._cursor.next_stretch()
        if stretch is None:
            self._gatherer.stop()
            raise StopIteration
        if not self._gatherer.running:
            self._start_loading(stretch)
        rows = self._gatherer.gather(stretch, self._rank)
        if not rows.planes:
            # A harvest that was followed has ended with fewer rows than planned.
            self._gatherer.stop()
            raise StopIteration
        self._cursor.advance()
        self._warn_of_skipped_chunks()
        return self._batch_of(rows)

    def _start_loading(self, stretch: Stretch) -> None:
        """Begin to load windows, from the one that holds a stretch's first element."""
        # The plan holds no reference to the stream, so that a stream that is dropped is
        # collected, and its threads with it.
        plan = partial(
            planned_loads,
            self._ordering.order,
            self._ordering.units,
            stretch.epoch,
            stretch.first // len(self.columns.label),
            self._epochs,
            self._rank,
        )
        self._gatherer.start(plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the process ends, its threads have ended, and so have the modules that
        # closing needs.
        if hasattr(self, "_gatherer") and not _exiting():
            self._gatherer.close()

    def close(self) -> None:
        """Join all threads and free the windows.

        The stream can be iterated again; it goes on where it stopped.
        """
        self._gatherer.close()

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the batches' x alone, [B, d].

        That is what SAELens (6 and later) takes as a data provider, and what any plain
        training loop needs.
        """
        for batch in self:
            yield batch.x

    def state(self) -> StreamState:
        """Return where the stream stands: the next batch."""
        return StreamState(
            store=self._digests.store,
            spec=self._digests.spec,
            epoch=self._cursor.epoch,
            batch=self._cursor.batch,
        )

    def restore(self, state: StreamState) -> None:
        """Go on from a state.

        A store that was extended since is read as it was (see `Store.before`).

        Raises:
            SpecError: The store or the spec is another; the stream is then as it was.
        """
        if not isinstance(state, StreamState):
            raise SpecError(
                "stream.restore: wanted a StreamState, as `stream.state()` gives it,"
                f" got {type(state).__name__}"
            )
        if state.version != STATE_VERSION:
            raise SpecError(
                f"this state is of version {state.version}, this actstore knows"
                f" {STATE_VERSION}; upgrade it"
            )
        # Kept, so that a state that does not fit changes nothing.
        newest = self.store
        position = (self._cursor.epoch, self._cursor.batch)
        if state.store != self._digests.store:
            self._open(store_of_state(newest, self.spec, state))
        problem = self._why_it_does_not_fit(state)
        if problem is not None:
            if self.store is not newest:
                self._open(newest)
                self._cursor.move_to(*position)
            raise SpecError(
                f"this state does not fit: {problem}; resume with the spec that the"
                " stream had"
            )
        self._gatherer.stop()
        self._cursor.move_to(state.epoch, state.batch)

    def _why_it_does_not_fit(self, state: StreamState) -> str | None:
        """Return what is wrong with a state of this store; None: nothing."""
        if not self._cursor.has(state.epoch, state.batch):
            return "its batch comes after the epoch's end"
        if state.spec != self._digests.spec:
            return "it is of another StreamSpec or window size"
        return None

    def _warn_of_skipped_chunks(self) -> None:
        """Warn where chunks were skipped since the last warning."""
        skipped = self._gatherer.skipped
        if len(skipped) <= self._n_told:
            return
        self._n_told = len(skipped)
        last_error = next(reversed(skipped.values()))
        warn(
            f"skipped {self._n_told} chunks that cannot be read,"
            f" {self.skipped_rows:,} rows so far; the last: {last_error}",
            StreamWarning,
        )

    def _set_rescaling(self) -> None:
        """Set what is done to the rows of the sites, and of the targets if any."""
        kind = self.spec.rescale
        center = bool(self.spec.center)
        self.rescaling: Rescaling = rescaling(self.store, self.sites, kind, center)
        self.target_rescaling: Rescaling | None = None
        if self.targets is not None:
            self.target_rescaling = rescaling(self.store, self.targets, kind, center)
        self._factors = self._factors_of(self.rescaling)
        self._target_factors = self._factors_of(self.target_rescaling)

    def _factors_of(self, made: Rescaling | None) -> Factors | None:
        """Return a rescaling on the device; None: rows are delivered as they are."""
        changes_rows = self.spec.rescale != "none" or self.spec.center
        if made is None or not changes_rows:
            return None
        return made.tensors(self.device)

    def _batch_of(self, rows: GatheredRows) -> Batch:
        """Return rows as they are delivered."""
        if self.spec.mode == "aligned":
            x = torch.stack(self._aligned(rows.planes), dim=1)
        else:
            x = self._scaled(rows.planes[0], rows.label, self._factors)
        target = None
        if self.targets is not None:
            target = self._scaled(rows.planes[1], rows.label, self._target_factors)
        return Batch(x, rows.label, rows.row, target, rows.batch_position)

    def _aligned(self, planes: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Return the rows of each site, [B, d] each, rescaled."""
        sites = torch.arange(len(self.sites), device=self.device)
        return [
            self._scaled(rows, sites[i : i + 1], self._factors)
            for i, rows in enumerate(planes)
        ]

    def _scaled(
        self, rows: torch.Tensor, layer: torch.Tensor, factors: Factors | None
    ) -> torch.Tensor:
        """Return rows [n, d] as they are delivered; layer: [n], or [1] for all rows."""
        dtype = DTYPES[self.spec.dtype]
        if factors is None:
            return rows.to(dtype)
        # In float32 until the end: in bfloat16, a mean that is taken off a large value
        # would leave a few bits.
        scale, mean = factors
        wide = rows.to(torch.float32)
        if mean is not None:
            wide = wide - mean.index_select(0, layer)
        return (wide * scale.index_select(0, layer)).to(dtype)


def _device(name: str | torch.device) -> torch.device:
    """Return a device by its name.

    Raises:
        SpecError: There is no device of that name.
    """
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise SpecError(
            f"device {name!r} cannot be used; wanted cpu, or cuda (cuda:1, ...) where"
            " torch finds a GPU"
        ) from error


def _usable_cores() -> int:
    """Return how many threads read and decode by default."""
    if hasattr(os, "sched_getaffinity"):
        return min(MOST_THREADS, len(os.sched_getaffinity(0)))
    return min(MOST_THREADS, os.cpu_count() or 1)
