"""From what a user gives (a spec, a dict, a module, tokens) to a HarvestSpec; loads nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actstore.errors import SpecError
from schemas.harvest import HarvestSpec

_COUNT = re.compile(r"\s*([0-9]+(?:[._][0-9]+)*|\.[0-9]+)\s*([kmbt]?)\s*", re.IGNORECASE)
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?)b?|b?)\s*", re.IGNORECASE)
_THOUSANDS = {"": 0, "k": 1, "m": 2, "b": 3, "g": 3, "t": 4}


def parse_count(text: str) -> int:
    """A number of tokens: `300k`, `1M`, `2.5B`, `100_000`. Raises SpecError."""
    found = _COUNT.fullmatch(text)
    if found is None:
        raise SpecError(f"{text!r} is not a number of tokens; write 300k, 1M, 2.5B or plain digits")
    return round(float(found.group(1).replace("_", "")) * 1000.0 ** _THOUSANDS[found.group(2).lower()])


def parse_size(text: str) -> int:
    """A number of bytes: `4GiB`, `500MB`, `1.5g` (binary without the B), plain digits. Raises SpecError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise SpecError(f"{text!r} is not a size; write 4GiB, 500MB or a number of bytes")
    unit, binary = (found.group(2) or "").lower(), found.group(3) or not text.strip().lower().endswith("b")
    return round(float(found.group(1)) * (1024.0 if binary else 1000.0) ** _THOUSANDS[unit])


def read_tokens(path: str) -> tuple[int, ...]:
    """Token ids of a file, one per line (blank lines and `#` comments aside), sorted. Raises SpecError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: the list of token ids cannot be read: {error}") from error
    ids = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not text.isdigit():
            raise SpecError(f"{path}, line {number}: wanted a token id, got {text!r}; write one number per line")
        if text:
            ids.add(int(text))
    return tuple(sorted(ids))


def resolve_spec(spec: HarvestSpec | Mapping[str, Any], model: Any = None, tokens: Any = None) -> HarvestSpec:
    """The spec, with what follows from a module and tokens in memory filled in.

    Raises:
        SpecError: an unknown key or a value that cannot be used.
    """
    if isinstance(spec, HarvestSpec):
        return spec
    values = dict(spec)
    if model is not None:
        values.setdefault("model", {"name": f"memory:{type(model).__name__}"})
    if tokens is not None:
        values.setdefault("corpus", {"name": "memory", "kind": "memory"})
        shape: tuple[int, ...] = tuple(getattr(tokens, "shape", ()))
        if len(shape) == 2:
            values.setdefault("context", shape[1])
        if len(shape) in {1, 2}:
            values.setdefault("tokens", math.prod(shape))
    for key in ("model", "corpus"):
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    if isinstance(values.get("sites"), str):
        values["sites"] = (values["sites"],)
    try:
        return HarvestSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(f"harvest spec: {readable(error)}") from error


def readable(error: ValidationError) -> str:
    """What was wrong, one clause per field: name, reason, what came."""
    parts = []
    for one in error.errors():
        name = ".".join(map(str, one["loc"])) or "the spec"
        if one["type"] == "extra_forbidden":
            parts.append(f"{name}: there is no such key")
        elif one["type"] == "missing":
            parts.append(f"{name}: missing")
        else:
            parts.append(f"{name}: {one['msg'][0].lower()}{one['msg'][1:]}, got {one['input']!r}")
    return "; ".join(parts)
