"""From what a user gives (a spec, a dict, a module, tokens) to a HarvestSpec; loads nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actstore.errors import SpecError
from actstore.harvesting.ids import token_array
from actstore.validation import Options, validated
from schemas import base
from schemas.harvest import HarvestSpec


def parse_count(text: str) -> int:
    """A number of tokens or rows: `300k`, `1M`, `2.5B`, `100_000`. Raises SpecError."""
    return _parsed(base.parse_count, text)


def parse_size(text: str) -> int:
    """A number of bytes: `4GiB`, `500MB`, `1.5g` (binary without the B), plain digits. Raises SpecError."""
    return _parsed(base.parse_size, text)


def _parsed(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise SpecError(str(error)) from error


def read_tokens(path: str) -> tuple[int, ...]:
    """Token ids of a file, one per line (blank lines and `#` comments aside), sorted. Raises SpecError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: the list of token ids cannot be read: {error}") from error
    ids = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not re.fullmatch(r"[0-9]{1,18}", text):
            raise SpecError(f"{path}, line {number}: wanted a token id, got {text!r}; write one number per line")
        if text:
            ids.add(int(text))
    return tuple(sorted(ids))


def resolve_spec(
    spec: HarvestSpec | Mapping[str, Any],
    model: Any = None,
    tokens: Any = None,
    where: str = "harvest spec",
    options: Options | None = None,
) -> HarvestSpec:
    """The spec, with what follows from a module and tokens in memory filled in.

    `where` it is from, and what came as options of a command: for errors (see `validated`).

    Raises:
        SpecError: an unknown key or a value that cannot be used.
    """
    array = None if tokens is None else token_array(tokens)
    if isinstance(spec, HarvestSpec):
        return spec
    values = dict(spec)
    if model is not None:
        values.setdefault("model", {"name": f"memory:{type(model).__name__}"})
    if tokens is not None:
        values.setdefault("corpus", {"name": "memory", "kind": "memory"})
        if array is not None and array.ndim == 2:
            values.setdefault("context", array.shape[1])
        if array is not None:
            values.setdefault("tokens", array.size)
    for key in ("model", "corpus"):
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    return validated(HarvestSpec, values, where, options)
