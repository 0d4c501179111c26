"""Texts of others as a terminal may show them: names, URLs, errors that repeat them.

A terminal obeys control characters (colours, cursor, title), and some others turn the
direction of what is shown.
"""

from __future__ import annotations

import re

from schemas.unprintable import UNPRINTABLE

_OBEYED = re.compile(f"(?![\t\n]){UNPRINTABLE}")


def printable(text: str) -> str:
    """Return a text with an escape for each character that a terminal obeys.

    Tabs and line feeds stay.
    """
    return _OBEYED.sub(_escape, text)


def one_line(text: str) -> str:
    """Return a printable text as one line, whatever it has in it."""
    return printable(text).replace("\t", "\\t").replace("\n", "\\n")


def shortened(text: str, most: int) -> str:
    """Return a printable text of at most so many characters; its middle is left out."""
    text = printable(text)
    if len(text) <= most:
        return text
    at_end = (most - 1) // 2
    return f"{text[: most - 1 - at_end]}…{text[-at_end:]}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
