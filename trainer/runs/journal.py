"""Keeps `journal.jsonl` of a run: one StepRecord a line.

Sinks (TensorBoard, Weights & Biases) get the same records as they come. A line counts
once it ends with a line feed: half a line that a killed process left is not read, and
is written over when the run is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.records import StepRecord
from schemas.train import TrainSpec
from trainer.runs.run_lock import RunLock

KEY = "journal.jsonl"
MOST_BYTES = 1 << 30  # bytes that are read: millions of lines
REMOTE_EVERY_S = 30.0
# Writing a remote journal again and again takes at most this share of the time.
REMOTE_SHARE = 0.05


class Sink(Protocol):
    """Another place for a run's records; nothing it does may change training."""

    def add(self, record: StepRecord) -> None: ...

    def close(self) -> None: ...


# Makes the sinks of a run from its URL, its spec and the step that it starts after.
Sinks = Callable[[str, TrainSpec, int], list[Sink]]


class Journal:
    """Collects a run's records and writes them to its folder.

    In a local folder each record is appended to the file as it comes. Elsewhere objects
    can only be replaced, so the whole journal is written now and then.

    Attributes:
        records: All records so far, those of earlier processes included.
        sinks: What else gets each record.
    """

    def __init__(self, storage: Storage, up_to_step: int = 0) -> None:
        """Begin after a step; records of later steps are dropped.

        Args:
            storage: The run's folder.
            up_to_step: The step of the checkpoint that the run goes on from.
        """
        self._storage = storage
        self._lock = RunLock(storage)
        self.sinks: list[Sink] = []
        self.records = [record for record in read(storage) if record.step <= up_to_step]
        # How many records the file holds. None until the first writing: what is there
        # may go beyond the checkpoint, so that writing replaces it.
        self._n_written: int | None = None
        self._next_remote_write = 0.0

    def begin(self) -> None:
        """Keep other processes from writing the run until `close`.

        The run's folder must be there.

        Raises:
            RunError: Another process writes it.
        """
        self._lock.take()

    def add(self, record: StepRecord) -> None:
        """Collect a record, and hand it to the sinks."""
        self.records.append(record)
        for sink in self.sinks:
            sink.add(record)

    def close(self) -> None:
        """Close the sinks; the journal itself is whole once `write` has returned."""
        self._lock.free()
        for sink in self.sinks:
            sink.close()

    def write(self) -> None:
        """Write all records so that they survive a crash of the machine."""
        self._write(sync=True)

    def flush(self) -> None:
        """Write all records at little cost.

        The system may take a moment to put them on the disk. A remote journal is left
        alone until its next writing is due.
        """
        is_local = self._storage.local is not None
        if is_local or time.monotonic() >= self._next_remote_write:
            self._write(sync=False)

    def _write(self, *, sync: bool) -> None:
        began = time.monotonic()
        if self._storage.local is not None and self._n_written is not None:
            new = self.records[self._n_written :]
            self._storage.append(KEY, _as_lines(new), sync=sync)
        elif self._n_written != len(self.records):
            self._storage.put(KEY, _as_lines(self.records))
        self._n_written = len(self.records)
        took = time.monotonic() - began
        # A writing that took 3 s comes once in 60 s, which is 5 % of the time.
        self._next_remote_write = began + max(REMOTE_EVERY_S, took / REMOTE_SHARE)


def read(storage: Storage) -> list[StepRecord]:
    """Return the records of a run's journal; none where it has not been written yet.

    Raises:
        CorruptError: It is larger than any journal.
        SpecError: A line of it is not a record.
    """
    try:
        data = storage.read(KEY, MOST_BYTES)
    except CorruptError:  # a kind of ObjectError, but the journal is there
        raise
    except ObjectError:
        return []
    whole_lines, _, _unfinished = data.rpartition(b"\n")
    where = f"{storage.url}/{KEY}"
    return [
        validated_json(StepRecord, line, f"{where}, line {number}")
        for number, line in enumerate(whole_lines.splitlines(), 1)
    ]


def _as_lines(records: list[StepRecord]) -> bytes:
    return "".join(record.model_dump_json() + "\n" for record in records).encode()
