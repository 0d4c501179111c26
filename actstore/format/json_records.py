"""Reads JSON of a store that may be someone else's.

Size and depth are looked at before it is parsed.
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

DEEPEST = 64  # brackets inside each other that are read
# Brackets inside strings do not count; a backslash takes the character after it along.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_record(
    storage: Storage, key: str, schema: type[Model], limit: int = RECORD_JSON
) -> Model:
    """Return an object as an instance of a schema.

    Args:
        storage: Where the store lies.
        key: The key of the object.
        schema: What it must be.
        limit: The most bytes that are read.

    Raises:
        ObjectError: There is no such object.
        CorruptError: It is not one of the schema's.
    """
    return parsed_record(schema, storage.read(key, limit), f"{storage.url}/{key}")


def parsed_record(schema: type[Model], data: bytes, where: str) -> Model:
    """Return JSON as an instance of a schema.

    Raises:
        CorruptError: It is not one; says in sentences why.
    """
    check_depth(data, where)
    return shallow_record(schema, data, where)


def shallow_record(schema: type[Model], data: bytes, where: str) -> Model:
    """Return the same of JSON whose depth has been looked at."""
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise CorruptError(
            f"{where}: not a valid {schema.__name__}: {sentences(error)}"
        ) from error


def parsed_json(
    data: bytes, where: str, error: type[ActstoreError] = CorruptError
) -> Any:
    """Return the value that JSON stands for.

    Args:
        data: The JSON.
        where: The place that errors name.
        error: What is raised where it is not JSON, or nested too deeply.
    """
    if data.lstrip()[:1] == b"<":
        raise error(
            f"{where}: not valid JSON but a page of HTML or XML; check the URL and the"
            " endpoint: something else answers there, a page to log in, say"
        )
    check_depth(data, where, error)
    try:
        return json.loads(data.decode())  # UTF-8 alone: json would guess from bytes
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid JSON: {problem}") from problem


def check_depth(
    data: bytes, where: str, error: type[ActstoreError] = CorruptError
) -> None:
    """Raise `error` where brackets are nested more than `DEEPEST` deep."""
    # With no more brackets than that, none can be nested deeper: most records have
    # few, and need no second look.
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    depth = 0
    deepest = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise error(
            f"{where}: not valid JSON: nested {deepest} deep; at most {DEEPEST} are"
            " read"
        )
