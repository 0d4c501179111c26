"""Counts and sizes as users write them, such as `300k` and `4GiB`."""

from __future__ import annotations

from collections.abc import Callable

from actstore.errors import SpecError
from schemas import base


def parse_count(text: str) -> int:
    """Return a number of tokens or rows from text: `300k`, `1M`, `2.5B`, `100_000`.

    Raises:
        SpecError: It is no count.
    """
    return _parsed(base.parse_count, text)


def parse_size(text: str) -> int:
    """Return a number of bytes from text: `4GiB`, `500MB`, plain digits.

    Without the B units are binary: `1.5g` is 1.5 GiB.

    Raises:
        SpecError: It is no size.
    """
    return _parsed(base.parse_size, text)


# A ValueError would end a command with a traceback; a SpecError is a message.
def _parsed(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise SpecError(str(error)) from error
