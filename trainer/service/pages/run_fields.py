"""Lists the fields of a run's spec: those that were chosen, and those that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.base import Schema, field_differences


class ComparedField(NamedTuple):
    """A field of the specs of several runs.

    Attributes:
        path: Its dotted path: `sae.k`.
        values: Its value in each run, as JSON has it; None where there is none.
        differs: Whether they are not all the same.
    """

    path: str
    values: list[Any]
    differs: bool


def changed_fields(spec: Schema) -> dict[str, Any]:
    """Return the fields that are not at their defaults, as JSON has them.

    The kind of an SAE stays, though each kind's is its default.
    """
    values: dict[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    sae = getattr(spec, "sae", None)
    if sae is not None:
        values["sae"] = _with_kinds(sae)
    return values


def _with_kinds(sae: Schema) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": getattr(sae, "kind", None)}
    values |= sae.model_dump(mode="json", exclude_defaults=True)
    inner = getattr(sae, "inner", None)
    if inner is not None:
        values["inner"] = _with_kinds(inner)
    return values


def compared_fields(specs: Sequence[Schema]) -> list[ComparedField]:
    """Return every field of some specs beside each other, sorted by its path.

    Fields that are a list are compared as a whole.
    """
    flat = [_spread(spec.model_dump(mode="json")) for spec in specs]
    differing = {
        one.path for other in flat[1:] for one in field_differences(flat[0], other)
    }
    return [
        ComparedField(path, [fields.get(path) for fields in flat], path in differing)
        for path in sorted({path for fields in flat for path in fields})
    ]


def _spread(document: Any, path: str = "") -> dict[str, Any]:
    """Return the values of a nested document by their dotted paths."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            found |= _spread(value, inner)
        else:
            found[inner] = value
    return found
