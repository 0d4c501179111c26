"""Shortens a list for a message: the first of it, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


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
