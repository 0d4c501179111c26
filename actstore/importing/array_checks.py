"""Checks that arrays can become a store, and that all of them have the same rows."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SourceError, SpecError
from actstore.format.manifest_checks import is_site_name
from actstore.format.token_ids import LARGEST, check_range, integers
from actstore.importing.source_arrays import can_be_site


def check_site(name: str) -> str:
    """Return a site's name, which becomes a part of keys and of patterns.

    Raises:
        SpecError: It has other characters than these can have.
    """
    if not is_site_name(name):
        raise SpecError(
            f"site name {name!r}: wanted letters, digits, `.`, `_` and `-` (200 at"
            " most), as in blocks.3.hook_mlp_out"
        )
    return name


def check_activations(site: str, where: str, dtype: str, shape: Sequence[int]) -> None:
    """Check that an array can be a site.

    Raises:
        SourceError: It cannot.
    """
    if not can_be_site(dtype, shape):
        raise SourceError(
            f"{where}: {dtype} {list(shape)} cannot be site {site!r}; wanted float16,"
            " bfloat16, float32 or float64 values of shape [n, d] or [n_sequences,"
            " context, d]"
        )
    if shape[-1] == 0:
        raise SourceError(f"{where}: {dtype} {list(shape)} has rows without values")


def check_tokens(where: str, dtype: str, shape: Sequence[int]) -> None:
    """Check that an array can be token ids.

    Raises:
        SourceError: It cannot.
    """
    if not re.fullmatch(r"u?int\d+", dtype) or len(shape) not in {1, 2}:
        raise SourceError(
            f"{where}: {dtype} {list(shape)} are not token ids; wanted integers of"
            " shape [n_sequences, context] or [n]"
        )


class Alignment(NamedTuple):
    """The sequences that the rows of several arrays belong to.

    Attributes:
        context: Tokens per sequence; 1 where nothing tells.
        has_contexts: Whether something told it. If not, each row is a sequence of its
            own, and its position in a text is not known.
        n_sequences: How many sequences there are.
    """

    context: int
    has_contexts: bool
    n_sequences: int


def align(
    shapes: Mapping[str, tuple[int, ...]],
    token_shape: tuple[int, ...] | None,
    given_context: int | None,
    *,
    may_be_empty: bool = False,
) -> Alignment:
    """Find the sequences that arrays of several sites, and token ids, have in common.

    Args:
        shapes: The shapes of the activations, [n, d] or [n_sequences, context, d], by
            the name that messages use.
        token_shape: The shape of the token ids, [n] or [n_sequences, context].
        given_context: What the user says of the context.
        may_be_empty: Whether there may be no row.

    Raises:
        SourceError: They do not have the same rows, or no whole number of sequences.

    Examples:
        Activations [6, 4] and token ids [2, 3] are 2 sequences of context 3, in rows of
        width 4. Activations [6, 4] alone are 6 sequences of context 1.
    """
    contexts = {name: shape[1] for name, shape in shapes.items() if len(shape) == 3}
    n_rows = {name: math.prod(shape[:-1]) for name, shape in shapes.items()}
    if token_shape is not None:
        n_rows["the tokens"] = math.prod(token_shape)
        if len(token_shape) == 2:
            contexts["the tokens"] = token_shape[1]
    if given_context is not None:
        contexts["--context"] = given_context
    if len(set(contexts.values())) > 1:
        raise SourceError(
            f"contexts differ: {_listed(contexts)}; all must come from the same"
            " sequences"
        )
    if len(set(n_rows.values())) > 1:
        raise SourceError(
            f"numbers of rows differ: {_listed(n_rows)}; a row is the same token at"
            " every site"
        )
    # All agree from here on: the first stands for them.
    name, rows = next(iter(n_rows.items()))
    context = next(iter(contexts.values()), 1)
    if context == 0 or (rows == 0 and not may_be_empty):
        raise SourceError(f"{name}: there are no rows in it")
    # 1,000 rows in contexts of 128 are 7 whole ones and 104 rows of an eighth.
    if rows % context:
        raise SourceError(
            f"{name}: {rows:,} rows are no whole number of contexts of {context};"
            " something is missing, or the context is another"
        )
    n_sequences = rows // context
    if n_sequences > LARGEST:
        raise SourceError(
            f"{n_sequences:,} sequences are too many for one store ({LARGEST:,}); give"
            " --context, or several stores"
        )
    return Alignment(context, bool(contexts), n_sequences)


def as_token_ids(ids: NDArray[Any], where: str) -> NDArray[np.int32]:
    """Return token ids [n] or [n, context] as int32, with -1 for padding.

    Raises:
        SourceError: One of them is not a token id.
    """
    check_range(ids, where, padding=True, error=SourceError)
    return ids.astype(np.int32)


def tokens_in_memory(tokens: Any) -> Any:
    """Return what was given as tokens, a list of token ids as an array; paths stay.

    Raises:
        SourceError: It is neither an array, a tensor, a list of ids nor a path.
    """
    if tokens is None or hasattr(tokens, "dtype") or are_paths(tokens):
        return tokens
    if not isinstance(tokens, (list, tuple)):
        raise SourceError(
            f"tokens: wanted an array, a tensor or a path, got {type(tokens).__name__}"
        )
    return integers(tokens, "tokens", SourceError)


def are_paths(source: Any) -> bool:
    """Return whether something is a path, or a list of paths."""
    if isinstance(source, (list, tuple)):
        return bool(source) and all(
            isinstance(entry, (str, os.PathLike)) for entry in source
        )
    return isinstance(source, (str, os.PathLike))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
