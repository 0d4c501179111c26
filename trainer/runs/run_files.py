"""JSON in a run's folder, which may be someone else's: what is too large, or is no such
record, is told by name.
"""

from __future__ import annotations

from typing import TypeVar

from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.base import Schema

Record = TypeVar("Record", bound=Schema)


def read_json(storage: Storage, key: str, schema: type[Record]) -> Record:
    """An object as the schema's instance.

    Raises ObjectError where there is none (CorruptError where it is too large),
    SpecError where it is none of those.
    """
    return validated_json(schema, storage.read(key, SMALL_JSON), f"{storage.url}/{key}")
