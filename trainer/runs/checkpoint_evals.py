"""Keeps `evals.jsonl` of a run: an evaluation for each SAE from its training."""

from __future__ import annotations

from collections.abc import Iterable

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.records import CheckpointEval

KEY = "evals.jsonl"
MOST_BYTES = 1 << 28  # bytes that are read


def write(storage: Storage, records: Iterable[CheckpointEval]) -> None:
    """Write evaluations into a run's folder, in place of those there are."""
    lines = [record.model_dump_json() + "\n" for record in records]
    storage.put(KEY, "".join(lines).encode())


def read(storage: Storage) -> list[CheckpointEval]:
    """Return a run's evaluations by step; none where there is no such file.

    Raises:
        CorruptError: It is larger than any such file.
        SpecError: A line of it is not a record.
    """
    try:
        data = storage.read(KEY, MOST_BYTES)
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError:
        return []
    where = f"{storage.url}/{KEY}"
    records = [
        validated_json(CheckpointEval, line, f"{where}, line {number}")
        for number, line in enumerate(data.splitlines(), 1)
    ]
    return sorted(records, key=lambda record: record.step)
