"""`journal.jsonl` of a run: one StepRecord a line; sinks get the same records as they
come.

A line is in the journal when it ends: what a killed process left of one is not read,
and written over on resuming.
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

KEY = "journal.jsonl"
MOST_BYTES = 1 << 30  # millions of lines
REMOTE_EVERY_S = 30.0
REMOTE_SHARE = 0.05  # of the time, at most, goes into writing it again and again


class Sink(Protocol):
    """Another place for a run's records; nothing it does may change training."""

    def add(self, record: StepRecord) -> None: ...

    def close(self) -> None: ...


Sinks = Callable[[str, TrainSpec, int], list[Sink]]


class Journal:
    """Collects records. In a local folder each is added to the file as it comes;
    elsewhere, where objects can only be replaced, the whole journal is written now and
    then.
    """

    def __init__(self, storage: Storage, up_to_step: int = 0) -> None:
        self._storage = storage
        self.sinks: list[Sink] = []
        self.records = [record for record in read(storage) if record.step <= up_to_step]
        # records there; None: whatever is there is of another life of the run
        self._written: int | None = None
        self._again_at = 0.0  # elsewhere: when the next writing is due

    def add(self, record: StepRecord) -> None:
        self.records.append(record)
        for sink in self.sinks:
            sink.add(record)

    def close(self) -> None:
        """Close the sinks; the journal itself is whole whenever `write` has returned."""
        for sink in self.sinks:
            sink.close()

    def write(self) -> None:
        """All records are there, and stay there if the machine stops, when this
        returns.
        """
        self._write(sync=True)

    def flush(self) -> None:
        """The same at little cost: the system may take a moment to put them on the
        disk; elsewhere it is not done every time.
        """
        if self._storage.local is not None or time.monotonic() >= self._again_at:
            self._write(sync=False)

    def _write(self, *, sync: bool) -> None:
        began = time.monotonic()
        if self._storage.local is not None and self._written is not None:
            self._storage.append(KEY, _lines(self.records[self._written :]), sync=sync)
        elif self._written != len(self.records):
            self._storage.put(KEY, _lines(self.records))
        self._written = len(self.records)
        took = time.monotonic() - began
        self._again_at = began + max(REMOTE_EVERY_S, took / REMOTE_SHARE)


def read(storage: Storage) -> list[StepRecord]:
    """The records of a run's journal; none where it has not been written yet."""
    try:
        data = storage.read(KEY, MOST_BYTES)
    except CorruptError:  # it is there, and no journal
        raise
    except ObjectError:
        return []
    whole, _, _torn = data.rpartition(b"\n")
    where = f"{storage.url}/{KEY}"
    return [
        validated_json(StepRecord, line, f"{where}, line {i}")
        for i, line in enumerate(whole.splitlines(), 1)
    ]


def _lines(records: list[StepRecord]) -> bytes:
    return "".join(record.model_dump_json() + "\n" for record in records).encode()
