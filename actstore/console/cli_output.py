"""Standard output and error of both command lines: any encoding can show what is
printed, and a reader may leave.

What an encoding does not have becomes a plain character where there is one for it, else
an escape that JSON knows too. A pipe whose reader has left (`| head -1`) ends the
command with exit code 1 and no word.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from typing import Any

PLAIN = "actstore.plain"  # the name of the error handler
_LIKE = {
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
    """Let both streams take every character."""
    codecs.register_error(PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def flushed() -> OSError | None:
    """Write what the streams still hold, now, and not when the interpreter ends. The
    error, where a stream refuses; nothing more is then written to it.
    """
    found: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            found = found or error
            _to_nowhere(stream)
        except ValueError:  # it is closed
            continue
    return found


def reader_left(error: OSError) -> bool:
    """Whether it is a pipe's, whose other end is closed."""
    return error.errno == errno.EPIPE


def _to_nowhere(stream: Any) -> None:
    """The interpreter flushes once more at its end, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_like, error.object[error.start : error.end])), error.end


def _like(character: str) -> str:
    if character in _LIKE:
        return _LIKE[character]
    code = ord(character)
    if 0x2500 <= code < 0x2580:  # lines of tables and bars
        return "|" if character in "│┃║╎╏┆┇┊┋" else "-"
    if 0x2580 <= code < 0x25A0:  # blocks
        return "#"
    if 0x2800 <= code < 0x2900:  # rich's spinner
        return "*"
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
