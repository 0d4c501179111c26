"""Counts and sizes as users write them, such as `300k` and `4GiB`."""

from __future__ import annotations

from collections.abc import Callable

from actstore.errors import SpecError
from schemas import base


def parse_count(text: str) -> int:
    """A number of tokens or rows: `300k`, `1M`, `2.5B`, `100_000`. Raises SpecError."""
    return _parsed(base.parse_count, text)


def parse_size(text: str) -> int:
    """A number of bytes: `4GiB`, `500MB`, `1.5g` (binary without the B), plain digits.
    Raises SpecError.
    """
    return _parsed(base.parse_size, text)


def _parsed(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise SpecError(str(error)) from error
