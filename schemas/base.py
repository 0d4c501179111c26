"""The base of everything that crosses a process or a disk: frozen, and strict about
unknown keys.

Counts (`1M`), sizes (`20GB`) and names (one, or a list) are read here, so that YAML,
options and Python mean the same. What is written is always a plain number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_COUNT = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)(e[0-9]{1,2})?\s*([kmbt]?)\s*",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(?:([kmgt])(i?)b?|b?)\s*", re.IGNORECASE
)
_THOUSANDS = {"": 0, "k": 1, "m": 2, "b": 3, "g": 3, "t": 4}


class Schema(BaseModel):
    """Frozen; an unknown key is an error; NaN and infinity are written as JSON strings,
    never as invalid JSON.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=()
    )

    def to_json(self) -> str:
        """Indented JSON with a final newline, the same bytes for the same values."""
        return self.model_dump_json(indent=1) + "\n"


def differences(wanted: Schema, found: Schema) -> list[str]:
    """Fields in which two values of one schema differ, as `a.b: wanted x, there is y`."""

    def walk(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            keys = sorted({*a, *b})
            return [
                line
                for key in keys
                for line in walk(
                    a.get(key), b.get(key), f"{path}.{key}" if path else key
                )
            ]
        return [] if a == b else [f"{path}: wanted {a!r}, there is {b!r}"]

    return walk(wanted.model_dump(mode="json"), found.model_dump(mode="json"), "")


def parse_count(text: str) -> int:
    """A number of tokens, rows or steps: `300k`, `1M`, `2.5B`, `1e6`, `100_000`. Raises
    ValueError.
    """
    found = _COUNT.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is not a count; write 300k, 1M, 2.5B or plain digits"
        )
    digits, power, unit = found.groups()
    count = (
        Decimal(digits.replace("_", "") + (power or ""))
        * 1000 ** _THOUSANDS[unit.lower()]
    )
    if count != int(count):
        raise ValueError(
            f"{text!r} is not a whole count; write 300k, 1M, 2.5B or plain digits"
        )
    return int(count)


def parse_size(text: str) -> int:
    """A number of bytes: `4GiB`, `500MB`, `1.5g` (binary without the B), plain digits.
    Raises ValueError.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is not a size; write 4GiB, 500MB or a number of bytes"
        )
    unit, binary = (
        (found.group(2) or "").lower(),
        found.group(3) or not text.strip().lower().endswith("b"),
    )
    return round(
        float(found.group(1).replace("_", ""))
        * (1024.0 if binary else 1000.0) ** _THOUSANDS[unit]
    )


def _count(value: Any) -> Any:
    return parse_count(value) if isinstance(value, str) else _number(value)


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # YAML's `yes` is no 1
        raise ValueError("true and false are no numbers")  # noqa: TRY004 (pydantic takes ValueErrors)
    return value


def _names(value: Any) -> Any:
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
"""blake3, 256 bit, in hexadecimal. The pattern is of files: in memory, a store that is
followed has another id.
"""
