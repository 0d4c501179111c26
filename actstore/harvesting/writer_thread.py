"""The threads that write units while the model's thread fills the next ones.

One encodes a unit while the other waits for the objects of the unit before it and
commits that. Unit buffers go back and forth between them and the model's thread.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from actstore.harvesting.filled_unit import FilledUnit
from actstore.harvesting.harvest_plan import UNITS_IN_FLIGHT
from actstore.harvesting.sealed_unit import seal
from actstore.harvesting.store_writer import BegunUnit, StoreWriter
from actstore.harvesting.unit_buffer import UnitBuffer
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, UnitRecord

ToldOfUnits = Callable[[BlockRecord, Future[UnitRecord] | None], None]
"""Is told of each unit that is committed, by its token block, from another thread.

With it comes its record, or the error that it ended with; None where it had been
committed before.
"""


class _UnitInFlight(NamedTuple):
    """A unit that waits or is being written, and the buffer that holds its rows."""

    record: Future[UnitRecord]
    buffer: UnitBuffer


class WriterThread:
    """Seals and writes units in the background, in the order they come.

    An error there is raised by whichever method is called next.

    Attributes:
        written: Units that have been committed.
        written_bytes: Bytes of their objects.
    """

    def __init__(
        self,
        plan: Plan,
        writer: StoreWriter,
        device: torch.device,
        told: ToldOfUnits | None = None,
    ) -> None:
        """Start the threads for `writer`.

        device: Where the model runs. told: Is told of each unit.
        """
        self._told = told
        self._plan = plan
        self._writer = writer
        self._device = device
        # One thread each, so that units are committed in their order: who follows a
        # growing store reads it from the front. The encoders have threads of their own.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._in_flight: deque[_UnitInFlight] = deque()
        self._free: list[UnitBuffer] = []
        self._buffers_made = 0
        self.written = 0
        self.written_bytes = 0

    @property
    def in_flight(self) -> int:
        """Units whose rows have all come, but which are not committed yet."""
        return len(self._in_flight)

    def staging_buffers(self) -> tuple[UnitBuffer, ...]:
        """Return two buffers on the device; none where that is the host.

        One fills while the other is copied.
        """
        # On the CPU rows are written straight into the unit's own buffer.
        if self._device.type == "cpu":
            return ()
        first = self._make_buffer(device=self._device)
        second = self._make_buffer(device=self._device)
        return first, second

    def free_buffer(self) -> UnitBuffer:
        """Return a buffer that may be filled.

        Waits for the oldest unit where all are in use.
        """
        while self._in_flight and self._in_flight[0].record.done():
            self._collect()
        # Made when it is first needed: a harvest of one unit needs one buffer.
        if not self._free and self._buffers_made < UNITS_IN_FLIGHT:
            self._buffers_made += 1
            return self._make_buffer(pinned=self._device.type == "cuda")
        while not self._free:
            self._collect()
        return self._free.pop()

    def submit(self, filled: FilledUnit, block: BlockRecord) -> None:
        """Seal and write a unit in the background; its buffer is free afterwards."""
        begun = self._pool.submit(self._begin, filled, block)
        record = self._commits.submit(self._commit, begun)
        if self._told is not None:
            record.add_done_callback(functools.partial(self._told, block))
        self._in_flight.append(_UnitInFlight(record, filled.buffer))

    def drain(self) -> None:
        """Wait until everything is written."""
        while self._in_flight:
            self._collect()

    def close(self) -> None:
        """End the threads.

        Units that are being written are finished, those that wait are dropped.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._commits.shutdown(wait=True)

    def _begin(self, filled: FilledUnit, block: BlockRecord) -> BegunUnit:
        return self._writer.begin(seal(filled), block)

    def _commit(self, begun: Future[BegunUnit]) -> UnitRecord:
        return self._writer.commit(begun.result())

    def _collect(self) -> None:
        """Wait for the oldest unit, count it, and take its buffer back."""
        unit = self._in_flight.popleft()
        record = unit.record.result()
        self.written += 1
        self.written_bytes += sum(written.bytes for written in record.objects.values())
        self._free.append(unit.buffer)

    def _make_buffer(
        self, *, pinned: bool = False, device: torch.device | None = None
    ) -> UnitBuffer:
        layout = self._plan.layout
        n_rows = layout.unit_sequences * layout.context
        return UnitBuffer.make(
            self._plan.sites,
            n_rows,
            self._plan.spec.dtype,
            pinned=pinned,
            device=device,
        )
