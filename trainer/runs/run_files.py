"""Reads JSON from a run's folder, which may be someone else's.

What is too large, or is not the record that it should be, is reported by its name.
"""

from __future__ import annotations

from typing import TypeVar

from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.base import Schema

Record = TypeVar("Record", bound=Schema)


def read_json(storage: Storage, key: str, schema: type[Record]) -> Record:
    """Return an object of a run's folder as an instance of a schema.

    Raises:
        ObjectError: There is no such object (CorruptError where it is too large).
        SpecError: It is not what the schema describes.
    """
    # Read up to a limit: a run may have been downloaded from anywhere.
    return validated_json(schema, storage.read(key, SMALL_JSON), f"{storage.url}/{key}")
