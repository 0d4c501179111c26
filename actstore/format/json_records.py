"""JSON of a store that may be someone else's: size and depth are looked at before it is
parsed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from actstore.errors import ActstoreError, CorruptError
from actstore.format.object_sizes import RECORD_JSON
from actstore.validation import sentences

if TYPE_CHECKING:
    from pydantic import BaseModel

    from actstore.format.storage import Storage

    Model = TypeVar("Model", bound=BaseModel)

DEEPEST = 64
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_record(
    storage: Storage, key: str, schema: type[Model], limit: int = RECORD_JSON
) -> Model:
    """An object as the schema's instance. Raises ObjectError, or CorruptError where it
    is none.
    """
    return parsed_record(schema, storage.read(key, limit), f"{storage.url}/{key}")


def parsed_record(schema: type[Model], data: bytes, where: str) -> Model:
    """The schema's instance. Raises CorruptError in sentences."""
    check_depth(data, where)
    return shallow_record(schema, data, where)


def shallow_record(schema: type[Model], data: bytes, where: str) -> Model:
    """The same of JSON whose depth has been looked at."""
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise CorruptError(
            f"{where}: not a valid {schema.__name__}: {sentences(error)}"
        ) from error


def parsed_json(
    data: bytes, where: str, error: type[ActstoreError] = CorruptError
) -> Any:
    """The value that JSON stands for. Raises `error` where it is none, or nested too
    deeply.
    """
    check_depth(data, where, error)
    try:
        return json.loads(data.decode())  # UTF-8 alone: of bytes, json would guess
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid JSON: {problem}") from problem


def check_depth(
    data: bytes, where: str, error: type[ActstoreError] = CorruptError
) -> None:
    """Raises `error` where brackets are nested more than `DEEPEST` deep."""
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    depth = deepest = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise error(
            f"{where}: not valid JSON: nested {deepest} deep; at most {DEEPEST} are"
            " read"
        )
