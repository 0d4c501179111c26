"""The base of all schemas: frozen records that refuse keys they do not know.

Whatever crosses from one process to another, or goes to a disk, is a schema.

Counts (`1M`), sizes (`20GB`) and names (one, or a list) are read here, so that YAML,
options and Python mean the same. What is written is always a plain number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_COUNT = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)(e[0-9]{1,2})?\s*([kmbt]?)\s*",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(?:([kmgt])(i?)b?|b?)\s*", re.IGNORECASE
)
# Powers of 1000, or of 1024 in a size. 10^9 tokens are `1B`, 10^9 bytes `1GB`.
_THOUSANDS = {"": 0, "k": 1, "m": 2, "b": 3, "g": 3, "t": 4}


class Schema(BaseModel):
    """The base of all schemas: frozen, and an unknown key is an error.

    NaN and infinity are written as JSON strings, never as invalid JSON.
    """

    # Forbidden extras catch a misspelt key, which would otherwise leave a default in
    # force unseen. `model_pooled` is a field of ours, in a namespace that pydantic
    # would otherwise warn of.
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=()
    )

    def to_json(self) -> str:
        """Return indented JSON with a final newline: equal values give equal bytes."""
        return self.model_dump_json(indent=1) + "\n"


class FieldDifference(NamedTuple):
    """A field in which two records differ.

    Attributes:
        path: Its dotted path, such as `spec.dtype`.
        a: Its value in the first record, as JSON has it; None where it is absent.
        b: Its value in the second record.
    """

    path: str
    a: Any
    b: Any


def field_differences(a: Any, b: Any, path: str = "") -> list[FieldDifference]:
    """Return the fields in which two JSON values differ, sorted by their paths.

    Objects are compared key by key, down to the values; lists as wholes.
    """
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [FieldDifference(path, a, b)]
    found = []
    for key in sorted({*a, *b}):
        inner_path = f"{path}.{key}" if path else key
        found += field_differences(a.get(key), b.get(key), inner_path)
    return found


def differences(wanted: Schema, found: Schema) -> list[str]:
    """Return the fields in which two values of a schema differ, a line for each.

    A line is `a.b: wanted x, there is y`.
    """
    every = field_differences(
        wanted.model_dump(mode="json"), found.model_dump(mode="json")
    )
    return [f"{path}: wanted {a!r}, there is {b!r}" for path, a, b in every]


def parse_count(text: str) -> int:
    """Return a number of tokens, rows or steps from text.

    It may be written `300k`, `1M`, `2.5B`, `1e6` or `100_000`.

    Raises:
        ValueError: It is no whole number.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a count; write 300k, 1M, 2.5B or plain digits"
        )
    digits, power, unit = match.groups()
    number = digits.replace("_", "") + (power or "")
    # Decimal, for a float is not exact: 0.29 * 100 is below 29.
    count = Decimal(number) * 1000 ** _THOUSANDS[unit.lower()]
    if count != int(count):
        raise ValueError(
            f"{text!r} is not a whole count; write 300k, 1M, 2.5B or plain digits"
        )
    return int(count)


def parse_size(text: str) -> int:
    """Return a number of bytes from text.

    `4GiB` is 4 * 1024^3 and `500MB` is 500 * 1000^2. Without the B units are binary, as
    in `free` and `dd`: `1.5g` is 1.5 GiB. Plain digits are bytes.

    Raises:
        ValueError: It is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a size; write 4GiB, 500MB or a number of bytes"
        )
    digits, prefix, i_of_gib = match.groups()
    ends_with_b = text.strip().lower().endswith("b")
    # GiB has the i, G has no B: both are binary. Only GB is decimal.
    is_binary = bool(i_of_gib) or not ends_with_b
    base = 1024.0 if is_binary else 1000.0
    power = _THOUSANDS[(prefix or "").lower()]
    return round(float(digits.replace("_", "")) * base**power)


def _count(value: Any) -> Any:
    return parse_count(value) if isinstance(value, str) else _number(value)


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # YAML's `yes` is no 1
        raise ValueError("true and false are no numbers")  # noqa: TRY004 (pydantic takes ValueErrors)
    return value


def _names(value: Any) -> Any:
    # A str is a sequence too: as a tuple it would be its letters.
    return (value,) if isinstance(value, str) else value


Count = Annotated[
    int, BeforeValidator(_count), Field(json_schema_extra={"format": "count"})
]
"""Tokens, rows or steps; also read from `1M`, `500k`."""

Size = Annotated[
    int, BeforeValidator(_size), Field(json_schema_extra={"format": "size"})
]
"""Bytes; also read from `4GiB`, `500MB`."""

Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Names or patterns; also read from a single one."""

Digest = Annotated[str, Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
"""A blake3 digest of 256 bits, in hexadecimal.

The pattern is that of files only: in memory, a store that is followed has another id.
"""
