"""Shortens lists of names for a message or a line of a table."""

from __future__ import annotations

from collections.abc import Sequence

# What fits into a line beside other things.
_MOST_IN_A_LINE = 3


def first_few(texts: Sequence[str], most: int, separator: str = ",") -> str:
    """Return the first texts of a list, and how many more there are.

    Two of five names are `a, b and 3 more`. Texts that have commas of their own are
    kept apart by semicolons: `a; b; and 3 more`.

    Args:
        texts: The whole list.
        most: How many are shown.
        separator: What stands between two of them.
    """
    shown = f"{separator} ".join(texts[:most])
    n_more = len(texts) - most
    if n_more <= 0:
        return shown
    before_and = "" if separator == "," else separator
    return f"{shown}{before_and} and {n_more:,} more"


def first_and_last(names: Sequence[str]) -> str:
    """Return all of up to three names, else the first and the last: `a, ..., d`."""
    if len(names) <= _MOST_IN_A_LINE:
        return ", ".join(names)
    return f"{names[0]}, ..., {names[-1]}"
