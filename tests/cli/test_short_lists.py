"""Lists of names in messages: what is shown of them."""

from __future__ import annotations

import pytest

from actstore.console.short_lists import first_and_last, first_few


@pytest.mark.parametrize(
    ("n", "separator", "wanted"),
    [
        (0, ",", ""),
        (2, ",", "a, b"),
        (3, ",", "a, b and 1 more"),
        (2, ";", "a; b"),
        (5, ";", "a; b; and 3 more"),
        (1003, ",", "a, b and 1,001 more"),
    ],
)
def test_of_a_long_list_the_first_are_shown(
    n: int, separator: str, wanted: str
) -> None:
    texts = ["a", "b", *["c"] * n][:n]
    assert first_few(texts, 2, separator) == wanted


def test_of_more_than_three_names_the_first_and_the_last_are_shown() -> None:
    assert first_and_last(("a", "b", "c")) == "a, b, c"
    assert first_and_last(("a", "b", "c", "d")) == "a, ..., d"
