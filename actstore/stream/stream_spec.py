"""Makes the spec of a stream from a given spec and the fields to change in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actstore.errors import SpecError
from actstore.validation import validated
from schemas.stream import StreamSpec


def spec_with(
    spec: StreamSpec | Mapping[str, Any] | None, fields: Mapping[str, Any]
) -> StreamSpec:
    """Return a copy of a spec with other values in some of its fields.

    Args:
        spec: The spec, or a dict of its fields; None for the default one.
        fields: The new values, by the names of the fields.

    Raises:
        SpecError: A field does not exist, or a value cannot be used.
    """
    if isinstance(spec, Mapping):
        return validated(StreamSpec, {**spec, **fields}, "store.stream")
    if spec is not None and not isinstance(spec, StreamSpec):
        raise SpecError(
            "store.stream: wanted a StreamSpec, or a dict of its fields, got"
            f" {type(spec).__name__}"
        )
    base = StreamSpec() if spec is None else spec
    if not fields:
        return base
    # Only fields that the user set are passed on. Some checks refuse a field that would
    # have no effect, and should not take a default for the user's wish.
    given = {name: getattr(base, name) for name in base.model_fields_set}
    return validated(StreamSpec, {**given, **fields}, "store.stream")
