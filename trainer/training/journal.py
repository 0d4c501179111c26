"""`journal.jsonl` of a run: one StepRecord a line, and the progress on the terminal."""

from __future__ import annotations

from actstore.errors import ObjectError
from actstore.format.storage import Storage
from schemas.records import StepRecord

KEY = "journal.jsonl"


class Journal:
    """Collects lines; `write` replaces the object as a whole, so that any fsspec URL will do."""

    def __init__(self, storage: Storage, up_to_step: int = 0) -> None:
        self._storage = storage
        self.records = [record for record in read(storage) if record.step <= up_to_step]

    def add(self, record: StepRecord) -> None:
        self.records.append(record)

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
