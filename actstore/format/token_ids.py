"""The door for token ids that come from outside, as arrays, tensors or lists: all is
checked before any cast.

Ids are whole numbers from 0 to below the model's vocabulary. -1 is padding. It stands
in arrays [n, context] only, before or behind a row's tokens, never among them, and no
row is padding alone. Rows that are padded on the left are moved to the left here, so
that a row's first token has position 0 for the model, in the store, and in every
filter.
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
Integers = NDArray[Any]


def token_array(source: Any) -> Integers | None:
    """The array that `tokens` are: [n, context] or a stream [n], in its own dtype;
    None: they are documents.

    Raises SpecError where they are neither.
    """
    if isinstance(source, (str, bytes, Mapping)):
        what = (
            "put a text into a list: [text]"
            if isinstance(source, (str, bytes))
            else "give its token ids alone"
        )
        raise SpecError(
            "tokens: wanted token ids or a list of documents, got"
            f" {type(source).__name__}; {what}"
        )
    numbers = (
        isinstance(source, (list, tuple))
        and source
        and isinstance(source[0], (bool, int, float, np.generic))
    )
    if hasattr(source, "columns"):
        raise SpecError(
            "tokens: wanted token ids or a list of documents, got"
            f" {type(source).__name__}; give one column"
        )
    if not (numbers or isinstance(source, np.ndarray) or _integer_dtype(source)):
        if not isinstance(source, Iterable):
            raise SpecError(
                "tokens: wanted token ids or a list of documents, got"
                f" {type(source).__name__}"
            )
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
    """Numbers as an array of the integer dtype that they have. Raises `error` for
    anything else.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise error(
            f"{where}: a mask of an array is not heeded; fill it with the padding:"
            f" array.filled({PAD})"
        )
    if hasattr(values, "is_floating_point"):
        if str(values.layout) != "torch.strided" or values.is_nested or values.is_meta:
            raise error(
                f"{where}: a tensor that is sparse, nested or without data; give a"
                " dense one"
            )
        values = values.detach().cpu()
        if values.is_floating_point() or values.is_complex():
            raise error(_no_ids(where, str(values.dtype).removeprefix("torch.")))
        values = values.numpy()
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
    """Raises `error` for what is no token id. vocabulary: 0 where it is not known;
    padding: whether -1 may stand.
    """
    if not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if low < (PAD if padding else 0):
        raise error(_negative(low, where))
    if vocabulary and high >= vocabulary:
        raise error(
            f"{where}: token id {high}: the model's vocabulary has {vocabulary} tokens;"
            " were they made for another?"
        )
    if high > LARGEST:
        raise error(f"{where}: {high} is no token id; wanted 0 to {LARGEST}")


def check_rows(array: Integers, where: str, vocabulary: int = 0) -> None:
    """Raises CorpusError where an array [n, context] is not rows of token ids with
    padding at their ends only.
    """
    check_range(array, where, vocabulary, padding=True)
    if not array.size or array.dtype.kind == "u" or int(array.min()) >= 0:
        return
    step = max(1, _BLOCK // array.shape[1])
    for start in range(0, len(array), step):
        there = np.asarray(array[start : start + step]) >= 0
        n, first = there.sum(axis=1), there.argmax(axis=1)
        behind = there.shape[1] - there[:, ::-1].argmax(axis=1)
        if not n.all():
            raise CorpusError(
                f"{where}: row {start + int(n.argmin())} is padding (-1) alone; leave"
                " it out"
            )
        torn = behind - first > n
        if torn.any():
            raise CorpusError(
                f"{where}: row {start + int(torn.argmax())} has padding (-1) among its"
                " tokens; it may stand before or behind them only"
            )


def check_token_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    """Raises SpecError where rows are chosen by a token that none can have. vocabulary:
    0 where it is not known.
    """
    wrong = [one for one in ids if one < 0 or one >= (vocabulary or LARGEST + 1)]
    if wrong:
        known = (
            f"the model's vocabulary has {vocabulary} tokens"
            if vocabulary
            else f"wanted 0 to {LARGEST}"
        )
        raise SpecError(
            f"{where}: there is no token {wrong[0]}, so no row is of it ({known});"
            " leave it out"
        )


def moved_left(rows: Tokens) -> Tokens:
    """Rows [n, context] with their padding behind the tokens."""
    before = (rows >= 0).argmax(axis=1)
    if not before.any():
        return rows
    columns = np.arange(rows.shape[1]) + before[:, None]
    moved: Tokens = np.take_along_axis(
        rows, np.minimum(columns, rows.shape[1] - 1), axis=1
    )
    moved[columns >= rows.shape[1]] = PAD
    return moved


def _integer_dtype(values: Any) -> bool:
    """Whether it is a tensor, or an array of another library that holds integers (a
    column of documents does not).
    """
    if hasattr(values, "is_floating_point"):
        return True
    return (
        hasattr(values, "__array__")
        and getattr(getattr(values, "dtype", None), "kind", "O") in "iu"
    )


def _of_list(
    values: list[Any] | tuple[Any, ...], where: str, error: type[ActstoreError]
) -> Integers:
    for kind in set(map(type, values)):
        if not issubclass(kind, (int, np.integer)) or kind is bool:
            raise error(_no_ids(where, kind.__name__))
    if values and not (min(values) >= -LARGEST and max(values) < 2**63):
        raise error(
            f"{where}: {min(values)} ... {max(values)} are no token ids; wanted 0 to"
            f" {LARGEST}"
        )
    return np.asarray(values, np.int64)


def _no_ids(where: str, kind: str) -> str:
    advice = "convert them if they are whole numbers"
    if kind == "object" or kind.startswith(("<U", ">U", "str", "list", "NoneType")):
        advice = "documents of several lengths, or texts, come in a list"
    return f"{where}: {kind} are no token ids; wanted integers ({advice})"


def _negative(low: int, where: str) -> str:
    if low == PAD:
        return (
            f"{where}: -1 is padding, which only an array [n, context] may hold; take"
            " it out"
        )
    return (
        f"{where}: {low} is no token id; padding is -1, so replace {low} by it if that"
        " is what it means"
    )
