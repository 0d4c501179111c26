"""Token ids from outside: what is taken, and the exact bounds of it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from actstore.errors import CorpusError, SpecError
from actstore.format import token_ids
from actstore.format.token_ids import (
    LARGEST,
    check_range,
    check_rows,
    check_token_ids,
    integers,
    moved_left,
    token_array,
)


def ids(*values: Any) -> np.ndarray:
    return np.array(values)


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ([1, 2], "int64"),
        ((1, np.int32(2)), "int64"),
        ([np.uint64(1), 2], "int64"),
        (np.array([1, 2], np.uint8), "uint8"),
        (torch.tensor([1, 2], dtype=torch.int32), "int32"),
    ],
)
def test_a_stream_keeps_its_dtype(source: Any, dtype: str) -> None:
    array = token_array(source)
    assert array is not None
    assert array.tolist() == [1, 2]
    assert array.dtype == dtype


def test_what_is_documents() -> None:
    for source in ([], (), [[1, 2]], ["text"], iter([1]), (i for i in [[1]])):
        assert token_array(source) is None
    rows = token_array(np.zeros((2, 3), np.int64))
    assert rows is not None
    assert rows.shape == (2, 3)


class OfIntegers:
    """Another library's array."""

    dtype = np.dtype("int16")

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, self.dtype)


class OfTexts(OfIntegers):
    """A column of documents."""

    dtype = np.dtype("U1")

    def __iter__(self) -> Any:
        return iter(["a", "b"])


class NoArray:
    dtype = np.dtype("int16")

    def __iter__(self) -> Any:
        return iter([[1]])


def test_arrays_of_other_libraries() -> None:
    array = token_array(OfIntegers([3, 4]))
    assert array is not None
    assert array.tolist() == [3, 4]
    assert token_array(OfTexts([1])) is None
    assert token_array(NoArray()) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text", "got str; put a text into a list: [text]"),
        (b"text", "got bytes; put a text into a list: [text]"),
        ({"input_ids": [1]}, "got dict; give its token ids alone"),
        (5, "got int"),
    ],
)
def test_what_is_neither_ids_nor_documents(source: Any, message: str) -> None:
    with pytest.raises(SpecError) as error:
        token_array(source)
    assert str(error.value) == (
        f"tokens: wanted token ids or a list of documents, {message}"
    )


def test_what_comes_is_named() -> None:
    with pytest.raises(SpecError, match=r"^tokens: float are not token ids"):
        token_array([1.5])
    table = type("Table", (), {"columns": ["a"]})()
    with pytest.raises(SpecError, match=r"got Table; give one column$"):
        token_array(table)


@pytest.mark.parametrize("shape", [(), (1, 2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError) as error:
        token_array(np.zeros(shape, np.int64))
    assert str(error.value) == (
        f"tokens of shape {list(shape)}: wanted [n, context], or a stream [n]"
    )


NO_IDS = [
    ([1.5], "float", "convert them if they are whole numbers"),
    ([True], "bool", "convert them if they are whole numbers"),
    (np.array(["a"]), "<U1", "documents of several lengths, or texts, come in a list"),
    (np.array(["a"]).astype(">U1"), ">U1", "documents of several lengths, or texts, come in a list"),
    (np.array([None]), "object", "documents of several lengths, or texts, come in a list"),
    (["a"], "str", "documents of several lengths, or texts, come in a list"),
    ([[1]], "list", "documents of several lengths, or texts, come in a list"),
    ([None], "NoneType", "documents of several lengths, or texts, come in a list"),
    (torch.ones(2), "float32", "convert them if they are whole numbers"),
    (torch.ones(2, dtype=torch.complex64), "complex64", "convert them if they are whole numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "kind", "advice"), NO_IDS)
def test_other_types_are_refused(values: Any, kind: str, advice: str) -> None:
    for raised, more in ((CorpusError, ()), (SpecError, (SpecError,))):
        with pytest.raises(raised) as error:
            integers(values, "here", *more)
        assert str(error.value) == (
            f"here: {kind} are not token ids; wanted integers ({advice})"
        )


def test_lists_hold_what_int64_holds() -> None:
    assert integers([], "here").tolist() == []
    assert integers([], "here").dtype == np.int64
    assert integers([-LARGEST, 2**63 - 1], "here").tolist() == [-LARGEST, 2**63 - 1]
    for wrong in ([-LARGEST - 1, 5], [2**63, 5]):
        with pytest.raises(CorpusError) as error:
            integers(wrong, "here")
        assert str(error.value) == (
            f"here: {min(wrong)} ... {max(wrong)} are not token ids; wanted 0 to"
            " 2147483647"
        )


@pytest.mark.filterwarnings("ignore")  # of torch, on nested tensors
def test_a_masked_array_and_a_sparse_tensor_are_refused() -> None:
    with pytest.raises(CorpusError) as error:
        integers(np.ma.masked_equal([1, 2], 2), "here")
    assert str(error.value) == (
        "here: the array's mask would be ignored; put padding in its place:"
        " array.filled(-1)"
    )
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    for tensor in (torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta"), nested):
        with pytest.raises(CorpusError) as error:
            integers(tensor, "here")
        assert str(error.value) == (
            "here: a tensor that is sparse, nested or without data; give a dense one"
        )


def test_the_range_of_ids() -> None:
    check_range(ids(), "here", 1)
    check_range(ids(0, 9), "here", 10)
    check_range(ids(0, LARGEST), "here")
    check_range(ids(0, LARGEST), "here", LARGEST + 1)
    check_range(ids(-1, 9), "here", 10, padding=True)
    told: dict[str, tuple[Any, int, dict[str, Any]]] = {
        "here: token id 10: the model's vocabulary has 10 tokens; were they made for"
        " another?": (ids(0, 10), 10, {}),
        "here: 2147483648 is not a token id; wanted 0 to 2147483647": (
            ids(LARGEST + 1),
            0,
            {},
        ),
        "here: -1 is padding, which only an array [n, context] may hold; take it out": (
            ids(-1, 5),
            10,
            {},
        ),
        "here: -2 is not a token id; padding is -1, so replace -2 by it if that is what it"
        " means": (ids(-2, 5), 10, {"padding": True}),
    }
    for message, (array, vocabulary, more) in told.items():
        with pytest.raises(CorpusError) as error:
            check_range(array, "here", vocabulary, **more)
        assert str(error.value) == message
        with pytest.raises(SpecError, match=re.escape(message)):
            check_range(array, "here", vocabulary, **more, error=SpecError)


GOOD_ROWS = [[-1, 7, 5], [0, 1, 2], [5, -1, -1], [-1, 4, -1]]


@pytest.mark.parametrize("block", [1, 6, 1 << 22])
def test_padding_stands_at_a_rows_ends(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_ids, "_BLOCK", block)
    check_rows(ids(*GOOD_ROWS), "here", 8)
    check_rows(ids(*GOOD_ROWS[1:2]).astype(np.uint32), "here", 8)
    check_rows(np.zeros((0, 3), np.int64), "here")
    alone = ids(*GOOD_ROWS, [-1, -1, -1], [-1, -1, -1])
    with pytest.raises(CorpusError) as error:
        check_rows(alone, "here", 8)
    assert str(error.value) == "here: row 4 is padding (-1) alone; leave it out"
    torn = ids(*GOOD_ROWS, [1, -1, 0], [5, -1, 1])
    with pytest.raises(CorpusError) as error:
        check_rows(torn, "here", 8)
    assert str(error.value) == (
        "here: row 4 has padding (-1) among its tokens; it may stand before or after"
        " them only"
    )
    with pytest.raises(CorpusError, match=r"^here: token id 7: the model's vocabulary"):
        check_rows(ids(*GOOD_ROWS), "here", 7)
    with pytest.raises(CorpusError, match=r"^here: -2 is not a token id"):
        check_rows(ids([5, -2]), "here")


def test_rows_are_moved_left() -> None:
    rows = np.array([[-1, -1, 5, 6], [1, 2, -1, -1], [-1, 0, -1, -1]], np.int32)
    moved = moved_left(rows)
    assert moved.tolist() == [[5, 6, -1, -1], [1, 2, -1, -1], [0, -1, -1, -1]]
    assert moved.dtype == np.int32
    assert moved_left(moved) is moved


def test_ids_by_whose_tokens_rows_are_chosen() -> None:
    check_token_ids([], 5, "here")
    check_token_ids([0, 4], 5, "here")
    check_token_ids([0, LARGEST], 0, "here")
    for wrong, vocabulary, known in (
        ([0, 5, 9], 5, "the model's vocabulary has 5 tokens"),
        ([0, -1], 5, "the model's vocabulary has 5 tokens"),
        ([LARGEST + 1], 0, "wanted 0 to 2147483647"),
    ):
        with pytest.raises(SpecError) as error:
            check_token_ids(wrong, vocabulary, "here")
        first = wrong[1] if len(wrong) > 1 else wrong[0]
        assert str(error.value) == (
            f"here: there is no token {first}, so no row is of it ({known}); leave it"
            " out"
        )
