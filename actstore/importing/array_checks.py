"""What arrays must be to become a store, and whether several of them are the same rows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SourceError, SpecError
from actstore.format.manifest_checks import is_site_name
from actstore.format.token_ids import LARGEST, check_range, integers
from actstore.importing.arrays import can_be_site


def check_site(name: str) -> str:
    """A site's name is a part of keys and of patterns. Raises SpecError."""
    if not is_site_name(name):
        raise SpecError(
            f"site name {name!r}: wanted letters, digits, `.`, `_` and `-` (200 at"
            " most), as in blocks.3.hook_mlp_out"
        )
    return name


def check_activations(site: str, where: str, dtype: str, shape: Sequence[int]) -> None:
    """Raises SourceError where an array cannot be a site."""
    if not can_be_site(dtype, shape):
        raise SourceError(
            f"{where}: {dtype} {list(shape)} cannot be site {site!r}; wanted float16,"
            " bfloat16, float32 or float64 values of shape [n, d] or [n_sequences,"
            " context, d]"
        )
    if shape[-1] == 0:
        raise SourceError(f"{where}: {dtype} {list(shape)} has rows without values")


def check_tokens(where: str, dtype: str, shape: Sequence[int]) -> None:
    """Raises SourceError where an array cannot be token ids."""
    if not re.fullmatch(r"u?int\d+", dtype) or len(shape) not in {1, 2}:
        raise SourceError(
            f"{where}: {dtype} {list(shape)} are no token ids; wanted integers of shape"
            " [n_sequences, context] or [n]"
        )


def aligned(
    shapes: Mapping[str, tuple[int, ...]],
    ids: tuple[int, ...] | None,
    context: int | None,
    *,
    empty: bool = False,
) -> tuple[int, bool, int]:
    """(context, whether it is known, number of sequences) of arrays by name and token
    ids. Raises SourceError.

    empty: whether there may be none.
    """
    said = {name: shape[1] for name, shape in shapes.items() if len(shape) == 3}
    counts = {name: int(np.prod(shape[:-1])) for name, shape in shapes.items()}
    if ids is not None:
        counts["the tokens"] = int(np.prod(ids))
        said |= {"the tokens": ids[1]} if len(ids) == 2 else {}
    said |= {} if context is None else {"--context": context}
    if len(set(said.values())) > 1:
        raise SourceError(
            f"contexts differ: {_listed(said)}; all must come from the same sequences"
        )
    if len(set(counts.values())) > 1:
        raise SourceError(
            f"numbers of rows differ: {_listed(counts)}; a row is the same token at"
            " every site"
        )
    rows, size = next(iter(counts.values())), next(iter(said.values()), 1)
    if not size or not (rows or empty):
        raise SourceError(f"{next(iter(counts))}: there are no rows in it")
    if rows and rows % size:
        raise SourceError(
            f"{next(iter(counts))}: {rows:,} rows are no whole number of contexts of"
            f" {size}; something is missing, or the context is another"
        )
    n = rows // max(size, 1)
    if n > LARGEST:
        raise SourceError(
            f"{n:,} sequences are too many for one store ({LARGEST:,}); give --context,"
            " or several stores"
        )
    return size, bool(said), n


def token_ids(ids: NDArray[Any], where: str) -> NDArray[np.int32]:
    """Token ids as int32, -1 for padding. Raises SourceError where one is no token id."""
    check_range(ids, where, padding=True, error=SourceError)
    return ids.astype(np.int32)


def ids_in_memory(tokens: Any) -> Any:
    """Token ids that are no path: an array or tensor, a list of ids as an array. Raises
    SourceError for others.
    """
    if tokens is None or hasattr(tokens, "dtype") or are_paths(tokens):
        return tokens
    if not isinstance(tokens, (list, tuple)):
        raise SourceError(
            f"tokens: wanted an array, a tensor or a path, got {type(tokens).__name__}"
        )
    return integers(tokens, "tokens", SourceError)


def are_paths(source: Any) -> bool:
    """Whether it is a path, or some."""
    if isinstance(source, (list, tuple)):
        return bool(source) and all(
            isinstance(one, (str, os.PathLike)) for one in source
        )
    return isinstance(source, (str, os.PathLike))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())
