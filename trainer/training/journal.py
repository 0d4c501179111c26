"""`journal.jsonl` of a run: one StepRecord a line; sinks get the same records as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from actstore.errors import ObjectError
from actstore.format.storage import Storage
from schemas.records import StepRecord
from schemas.train import TrainSpec

KEY = "journal.jsonl"


class Sink(Protocol):
    """Another place for a run's records; nothing it does may change training."""

    def add(self, record: StepRecord) -> None: ...

    def close(self) -> None: ...


Sinks = Callable[[str, TrainSpec, int], list[Sink]]


class Journal:
    """Collects lines; `write` replaces the object as a whole, so that any fsspec URL will do."""

    def __init__(self, storage: Storage, up_to_step: int = 0) -> None:
        self._storage = storage
        self.sinks: list[Sink] = []
        self.records = [record for record in read(storage) if record.step <= up_to_step]

    def add(self, record: StepRecord) -> None:
        self.records.append(record)
        for sink in self.sinks:
            sink.add(record)

    def close(self) -> None:
        """Close the sinks; the journal itself is whole whenever `write` has returned."""
        for sink in self.sinks:
            sink.close()

    def write(self) -> None:
        text = "".join(record.model_dump_json() + "\n" for record in self.records)
        self._storage.put(KEY, text.encode())


def read(storage: Storage) -> list[StepRecord]:
    """The records of a run's journal; none where it has not been written yet."""
    try:
        lines = storage.read(KEY).decode().splitlines()
    except ObjectError:
        return []
    return [StepRecord.model_validate_json(line) for line in lines]
