"""Makes a HarvestSpec of what a user gives: a spec, a dict, a module, tokens.

No model is loaded here and no corpus is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actstore.errors import SpecError
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
    """Return the spec, with what follows from a module and tokens in memory filled in.

    Args:
        spec: A HarvestSpec, which is taken as it is, or its fields.
        model: A module in memory, if there is one.
        tokens: Tokens in memory, if there are any.
        where: Where the fields are from, for errors.
        options: The fields that came as options of a command, for errors (see
            `validated`).

    Raises:
        SpecError: An unknown key, or a value that cannot be used.
    """
    # Tokens that are none are refused whatever the spec is.
    array = None if tokens is None else token_array(tokens)
    if isinstance(spec, HarvestSpec):
        return spec
    if not isinstance(spec, Mapping):
        raise SpecError(
            f"{where}: wanted a HarvestSpec or a dict of its fields, got"
            f" {type(spec).__name__}"
        )
    fields = dict(spec)
    if model is not None:
        fields.setdefault("model", {"name": f"memory:{type(model).__name__}"})
    if tokens is not None:
        fields.setdefault("corpus", {"name": "memory", "kind": "memory"})
    if tokens is not None and array is None and "tokens" not in fields:
        raise SpecError(
            f"{where}: tokens: missing; documents do not tell how many tokens to"
            " harvest, so give a count in the spec, such as 500k"
        )
    if array is not None:
        # The rows of a 2-d array are whole sequences; a 1-d array is cut into them.
        if array.ndim == 2:
            fields.setdefault("context", array.shape[1])
        fields.setdefault("tokens", array.size)
    return validated(HarvestSpec, fields, where, options)
