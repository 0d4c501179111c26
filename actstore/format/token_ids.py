"""Checks token ids that come from outside: arrays, tensors or lists.

All is checked before any cast could change a value.

Ids are whole numbers from 0 to below the size of the model's vocabulary. -1 is padding.
It stands in arrays [n, context] only, before or after a row's tokens, never among them,
and no row is padding alone. Rows that are padded on the left are moved to the left
here, so that a row's first token has position 0 for the model, in the store, and in
every filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import ActstoreError, CorpusError, SpecError

PAD = -1
LARGEST = 2**31 - 1  # ids are kept as int32
_BLOCK = 1 << 22  # ids whose padding is looked at together
Tokens = NDArray[np.int32]
"""Token ids, int32 [n] or [n, context]; -1 is padding."""

Integers = NDArray[Any]
"""Token ids in whatever integer dtype they came."""


def token_array(source: Any) -> Integers | None:
    """Return the array that tokens are, in the dtype that they have.

    It is [n, context], or one stream [n]. None: the tokens are documents.

    Raises:
        SpecError: They are neither.
    """
    what_came = (
        f"tokens: wanted token ids or a list of documents, got {type(source).__name__}"
    )
    if isinstance(source, (str, bytes)):
        raise SpecError(f"{what_came}; put a text into a list: [text]")
    if isinstance(source, Mapping):
        raise SpecError(f"{what_came}; give its token ids alone")
    if hasattr(source, "columns"):  # a table, as pandas and datasets have them
        raise SpecError(f"{what_came}; give one column")
    is_list_of_numbers = (
        isinstance(source, (list, tuple))
        and len(source) > 0
        and isinstance(source[0], (bool, int, float, np.generic))
    )
    is_array = isinstance(source, np.ndarray) or _has_integers(source)
    if not is_list_of_numbers and not is_array:
        if not isinstance(source, Iterable):
            raise SpecError(what_came)
        return None
    array = integers(source, "tokens", SpecError)
    if array.ndim not in {1, 2}:
        raise SpecError(
            f"tokens of shape {list(array.shape)}: wanted [n, context], or a stream [n]"
        )
    return array


def integers(
    values: Any, where: str, error: type[ActstoreError] = CorpusError
) -> Integers:
    """Return numbers as an array [*] of the integer dtype that they have.

    Args:
        values: An array, a tensor, or a list of numbers.
        where: The place that errors name.
        error: What is raised for anything else.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise error(
            f"{where}: the array's mask would be ignored; put padding in its place:"
            f" array.filled({PAD})"
        )
    if hasattr(values, "is_floating_point"):
        values = _of_tensor(values, where, error)
    if isinstance(values, (list, tuple)):
        return _of_list(values, where, error)
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise error(_no_ids(where, str(array.dtype)))
    return array


def check_range(
    array: Integers,
    where: str,
    vocabulary: int = 0,
    *,
    padding: bool = False,
    error: type[ActstoreError] = CorpusError,
) -> None:
    """Check that every value can be a token id.

    Args:
        array: The values, integers [*].
        where: The place that errors name.
        vocabulary: The size of the model's vocabulary; 0 where it is not known.
        padding: Whether -1 may be among them.
        error: What is raised for what is not a token id.
    """
    if not array.size:
        return
    low = int(array.min())
    high = int(array.max())
    lowest = PAD if padding else 0
    if low < lowest:
        raise error(_negative(low, where))
    if vocabulary and high >= vocabulary:
        raise error(
            f"{where}: token id {high}: the model's vocabulary has {vocabulary} tokens;"
            " were they made for another?"
        )
    if high > LARGEST:
        raise error(f"{where}: {high} is not a token id; wanted 0 to {LARGEST}")


def check_rows(array: Integers, where: str, vocabulary: int = 0) -> None:
    """Check that an array [n, context] is rows of token ids.

    They may have padding at their ends only.

    Raises:
        CorpusError: A value that is not an id, a row of padding alone, or one with
            padding among its tokens.
    """
    check_range(array, where, vocabulary, padding=True)
    if not array.size or array.dtype.kind == "u" or int(array.min()) >= 0:
        return
    context = array.shape[1]
    step = max(1, _BLOCK // context)
    for start in range(0, len(array), step):
        is_token = np.asarray(array[start : start + step]) >= 0
        n_tokens = is_token.sum(axis=1)
        if not n_tokens.all():
            row = start + int(n_tokens.argmin())
            raise CorpusError(f"{where}: row {row} is padding (-1) alone; leave it out")
        # In the row (-1, 7, -1, 5) the first token is at 1 and the last one ends at 4:
        # that is a span of 3 with 2 tokens, so there is padding among them.
        first = is_token.argmax(axis=1)
        end = context - is_token[:, ::-1].argmax(axis=1)
        torn = end - first > n_tokens
        if torn.any():
            raise CorpusError(
                f"{where}: row {start + int(torn.argmax())} has padding (-1) among its"
                " tokens; it may stand before or after them only"
            )


def check_token_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    """Check ids by whose tokens rows are chosen.

    Args:
        ids: The token ids.
        vocabulary: The size of the model's vocabulary; 0 where it is not known.
        where: The place that errors name.

    Raises:
        SpecError: An id that no token can have.
    """
    end = vocabulary or LARGEST + 1
    wrong = [token for token in ids if token < 0 or token >= end]
    if wrong:
        known = f"wanted 0 to {LARGEST}"
        if vocabulary:
            known = f"the model's vocabulary has {vocabulary} tokens"
        raise SpecError(
            f"{where}: there is no token {wrong[0]}, so no row is of it ({known});"
            " leave it out"
        )


def moved_left(rows: Tokens) -> Tokens:
    """Return rows, int32 [n, context], with their padding after the tokens."""
    n_before = (rows >= 0).argmax(axis=1)
    if not n_before.any():
        return rows
    # The row (-1, -1, 5, 6) takes its values from columns 2, 3, 4, 5; those from 4 on
    # do not exist and become padding: (5, 6, -1, -1).
    context = rows.shape[1]
    columns = np.arange(context) + n_before[:, None]
    inside = np.minimum(columns, context - 1)
    moved: Tokens = np.take_along_axis(rows, inside, axis=1)
    moved[columns >= context] = PAD
    return moved


def _has_integers(values: Any) -> bool:
    """Return whether values are a tensor, or another library's array of integers.

    A column of documents is not.
    """
    if hasattr(values, "is_floating_point"):
        return True
    dtype = getattr(values, "dtype", None)
    return hasattr(values, "__array__") and getattr(dtype, "kind", "O") in "iu"


def _of_tensor(tensor: Any, where: str, error: type[ActstoreError]) -> Integers:
    """Return a torch tensor of integers as an array."""
    if str(tensor.layout) != "torch.strided" or tensor.is_nested or tensor.is_meta:
        raise error(
            f"{where}: a tensor that is sparse, nested or without data; give a"
            " dense one"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() or tensor.is_complex():
        raise error(_no_ids(where, str(tensor.dtype).removeprefix("torch.")))
    array: Integers = tensor.numpy()
    return array


def _of_list(
    values: list[Any] | tuple[Any, ...],
    where: str,
    error: type[ActstoreError],
) -> Integers:
    """Return a list of whole numbers as an array."""
    for kind in set(map(type, values)):
        # bool is a subclass of int, and True is not token 1
        if not issubclass(kind, (int, np.integer)) or kind is bool:
            raise error(_no_ids(where, kind.__name__))
    if values and (min(values) < -LARGEST or max(values) >= 2**63):
        raise error(
            f"{where}: {min(values)} ... {max(values)} are not token ids; wanted 0 to"
            f" {LARGEST}"
        )
    return np.asarray(values, np.int64)


def _no_ids(where: str, kind: str) -> str:
    """Return what is said of values of another type than integers."""
    advice = "convert them if they are whole numbers"
    if kind == "object" or kind.startswith(("<U", ">U", "str", "list", "NoneType")):
        advice = "documents of several lengths, or texts, come in a list"
    return f"{where}: {kind} are not token ids; wanted integers ({advice})"


def _negative(low: int, where: str) -> str:
    """Return what is said of a negative value where none can be."""
    if low == PAD:
        return (
            f"{where}: -1 is padding, which only an array [n, context] may hold; take"
            " it out"
        )
    return (
        f"{where}: {low} is not a token id; padding is -1, so replace {low} by it if"
        " that is what it means"
    )
