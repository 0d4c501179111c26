"""The writer's thread, and the unit buffers that go back and forth between it and the
model's.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from actstore.harvesting.filled_unit import FilledUnit
from actstore.harvesting.harvest_plan import UNITS_IN_FLIGHT
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.unit_buffer import UnitBuffer
from schemas.harvest import Plan
from schemas.manifest import BlockRecord


class Writing:
    """Writes units in the background, in order; an error there is raised by whichever
    method is called next.
    """

    def __init__(self, plan: Plan, writer: StoreWriter, device: torch.device) -> None:
        self._plan, self._writer, self._device = plan, writer, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: deque[tuple[Future[Any], UnitBuffer]] = deque()
        self._free: list[UnitBuffer] = []
        self._made = 0
        self.written = 0
        self.written_bytes = 0

    @property
    def in_flight(self) -> int:
        """Units captured but not committed."""
        return len(self._pending)

    def staging(self) -> tuple[UnitBuffer, ...]:
        """Room for two units on the device, where that is not the host: one fills while
        the other is copied.
        """
        if self._device.type == "cpu":
            return ()
        return self._make(device=self._device), self._make(device=self._device)

    def buffer(self) -> UnitBuffer:
        """A free buffer; waits for the oldest unit where all are in use."""
        while self._pending and self._pending[0][0].done():
            self._collect()
        if not self._free and self._made < UNITS_IN_FLIGHT:
            self._made += 1
            return self._make(pinned=self._device.type == "cuda")
        while not self._free:
            self._collect()
        return self._free.pop()

    def submit(self, unit: FilledUnit, block: BlockRecord) -> None:
        """Encode and write a unit in the background."""
        future = self._pool.submit(lambda: self._writer.commit_unit(unit.rows(), block))
        self._pending.append((future, unit.buffer))

    def drain(self) -> None:
        """Wait until everything is written."""
        while self._pending:
            self._collect()

    def close(self) -> None:
        """End the thread: the unit being written is finished, those behind it are
        dropped.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self) -> None:
        future, buffer = self._pending.popleft()
        record = future.result()
        self.written += 1
        self.written_bytes += sum(one.bytes for one in record.objects.values())
        self._free.append(buffer)

    def _make(
        self, *, pinned: bool = False, device: torch.device | None = None
    ) -> UnitBuffer:
        layout = self._plan.layout
        rows = layout.unit_sequences * layout.context
        return UnitBuffer.make(
            self._plan.sites, rows, self._plan.spec.dtype, pinned=pinned, device=device
        )
