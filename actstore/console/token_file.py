"""Read the files of token ids that options such as --exclude-tokens name."""

from __future__ import annotations

import re
from pathlib import Path

from actstore.errors import SpecError


def read_tokens(path: str) -> tuple[int, ...]:
    """Return the token ids of a file, each once, in ascending order.

    A line holds one; blank lines and what follows a `#` are passed over.

    Raises:
        SpecError: The file cannot be read, or a line holds something else.
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
        if not text:
            continue
        # Up to 18 digits fit an int64. Whether the model has such a token is checked
        # once the model is known.
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise SpecError(
                f"{path}, line {number}: wanted a token id, got {text!r}; write one"
                " number per line"
            )
        ids.add(int(text))
    return tuple(sorted(ids))
