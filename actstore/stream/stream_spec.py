"""A stream's spec from one that is given and fields that are given anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actstore.errors import SpecError
from actstore.validation import validated
from schemas.stream import StreamSpec


def spec_with(
    spec: StreamSpec | Mapping[str, Any] | None, fields: Mapping[str, Any]
) -> StreamSpec:
    """Return a spec (None: the default one) with some of its fields given anew.

    Raises:
        SpecError: A field does not exist or cannot be used, in sentences.
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
    # What was not given stays not given: some checks tell a default from a wish.
    given = {name: getattr(base, name) for name in base.model_fields_set}
    return validated(StreamSpec, {**given, **fields}, "store.stream")
