"""Reads what is to be submitted: a spec, keys and values, or a YAML file of them.

Whether it is a valid spec, and suits its store, is the service's to say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actstore.errors import SpecError
from schemas.train import SweepSpec, TrainSpec

Spec = TrainSpec | SweepSpec | Mapping[str, Any] | str | os.PathLike[str]
MOST_BYTES = 1 << 20  # as the service takes


def spec_values(spec: Spec) -> dict[str, Any]:
    """Return a spec as JSON has it.

    Raises:
        SpecError: It is none, its file cannot be read, or JSON has no such values.
    """
    if isinstance(spec, (TrainSpec, SweepSpec)):
        return spec.model_dump(mode="json")
    where = "the spec"
    if isinstance(spec, (str, os.PathLike)):
        where = os.fspath(spec)
        values = _of_file(where)
    else:
        values = spec
    if not isinstance(values, Mapping):
        raise SpecError(
            f"{where}: wanted keys and values, such as `store: URL`, got"
            f" {type(values).__name__}"
        )
    try:
        text = json.dumps(_plain(values), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"{where}: a value in it is no text, number, list or keys and values"
            f" ({error})"
        ) from None
    plain: dict[str, Any] = json.loads(text)
    return plain


def _plain(value: Any) -> Any:
    """Return a value with the specs inside it as keys and values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _of_file(path: str) -> Any:
    import yaml

    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(
            f"{path}: there is no such file; wanted a YAML file of a spec"
        ) from None
    if len(data) > MOST_BYTES:
        raise SpecError(f"{path}: it is larger than {MOST_BYTES:,} bytes; is it YAML?")
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
