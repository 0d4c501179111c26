"""Standard output and standard error of both command lines.

Any encoding can show what is printed, and a reader may leave.

What an encoding does not have becomes a plain character where there is one for it, else
an escape that JSON knows too. A pipe whose reader has left (`| head -1`) ends the
command with exit code 1 and no word.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import math
import os
import sys
from typing import Any

PLAIN = "actstore.plain"  # the name of the error handler
_LOOKS_LIKE = {
    "█": "#",
    "–": "-",
    "—": "-",
    "…": ".",
    "±": "~",
    "×": "x",
    "→": ">",
    "²": "2",
    "‖": "|",
    "•": "*",
    "µ": "u",
}


def survive_any_encoding() -> None:
    """Let both streams take every character, whatever their encoding."""
    codecs.register_error(PLAIN, _plain_text)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def flushed() -> OSError | None:
    """Write what the streams still hold, now, and not when the interpreter ends.

    Returns:
        The error, where a stream refuses; nothing more is then written to it.
    """
    first_error: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            first_error = first_error or error
            _send_to_nowhere(stream)
        except ValueError:  # it is closed
            continue
    return first_error


def reader_left(error: OSError) -> bool:
    """Return whether an error is that of a pipe whose other end is closed."""
    return error.errno == errno.EPIPE


def _send_to_nowhere(stream: Any) -> None:
    """Send what a stream still gets to the null device.

    The interpreter flushes it once more at its end, and would complain.
    """
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _plain_text(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks, and where to go on.

    This is the form of an error handler that `codecs.register_error` wants.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unencodable = error.object[error.start : error.end]
    return "".join(map(_plain_character, unencodable)), error.end


def _plain_character(character: str) -> str:
    """Return what is written in place of a character that an encoding does not have."""
    if character in _LOOKS_LIKE:
        return _LOOKS_LIKE[character]
    code = ord(character)
    if 0x2500 <= code < 0x2580:  # lines of tables and bars
        return "|" if character in "│┃║╎╏┆┇┊┋" else "-"
    if 0x2580 <= code < 0x25A0:  # blocks
        return "#"
    if 0x2800 <= code < 0x2900:  # rich's spinner
        return "*"
    if code > 0xFFFF:
        # JSON escapes these in two halves, a surrogate pair.
        offset = code - 0x10000
        high = 0xD800 + (offset >> 10)
        low = 0xDC00 + (offset & 0x3FF)
        return f"\\u{high:04x}\\u{low:04x}"
    return f"\\u{code:04x}"


def json_number(value: float) -> float | str:
    """Return a number as JSON can hold it: infinities and NaN become their names."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
