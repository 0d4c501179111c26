"""From what a user gives (a spec, a dict, a module, tokens) to a HarvestSpec; loads
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actstore.format.token_ids import token_array
from actstore.validation import Options, validated
from schemas.harvest import HarvestSpec


def resolve_spec(
    spec: HarvestSpec | Mapping[str, Any],
    model: Any = None,
    tokens: Any = None,
    where: str = "harvest spec",
    options: Options | None = None,
) -> HarvestSpec:
    """The spec, with what follows from a module and tokens in memory filled in.

    `where` it is from, and what came as options of a command: for errors (see
    `validated`).

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
