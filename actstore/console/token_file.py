"""Reading a file of token ids."""

from __future__ import annotations

import re
from pathlib import Path

from actstore.errors import SpecError


def read_tokens(path: str) -> tuple[int, ...]:
    """Token ids of a file, one per line (blank lines and `#` comments aside), sorted.
    Raises SpecError.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path}: the list of token ids cannot be read: {error}"
        ) from error
    ids = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not re.fullmatch(r"[0-9]{1,18}", text):
            raise SpecError(
                f"{path}, line {number}: wanted a token id, got {text!r}; write one"
                " number per line"
            )
        if text:
            ids.add(int(text))
    return tuple(sorted(ids))
