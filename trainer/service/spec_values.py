"""Looks at the keys and values of a spec before anything is done with them.

What passes is short, plain and of an ordinary size: no secrets, which would be recorded
for all to read; no numbers that overflow what counts them; no patterns whose matching
would take for ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from actstore.errors import SpecError
from schemas.catalog import has_secret

MOST_RUNS = 500  # of one submission
LONGEST_TEXT = 1024
LARGEST = 1 << 53
MOST_STARS, MOST_BRACES, MOST_SPAN = 4, 2, 4096  # of one pattern
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SPAN = re.compile(r"\{(\d+)\.\.(\d+)\}")


def check_values(value: Any, path: str = "the spec") -> None:
    """Check the keys and values of a spec, and all inside them.

    Raises:
        SpecError: One is not plain; a text with a secret in it is not repeated.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(str(key), path)
            check_values(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            check_values(inner, path)
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        # NaN and infinity are not in that range either
        raise SpecError(f"{path}: wanted a number of at most 2^53 in size")


def check_number_of_runs(spec: Mapping[str, Any]) -> None:
    """Check that a sweep has not too many runs, before they are written out.

    Raises:
        SpecError: It has.
    """
    grid, runs = spec.get("grid"), spec.get("runs")
    number = len(runs) if isinstance(runs, list) else 1
    for values in grid.values() if isinstance(grid, Mapping) else ():
        number *= max(1, len(values)) if isinstance(values, list) else 1
    if number > MOST_RUNS:
        raise SpecError(
            f"the sweep has {number:,} runs, and at most {MOST_RUNS} can be submitted"
            " together; divide it"
        )


def _check_text(text: str, path: str) -> None:
    where = ascii(path)[1:-1][:200]
    if len(text) > LONGEST_TEXT:
        raise SpecError(f"{where}: wanted texts of at most {LONGEST_TEXT} characters")
    if has_secret(text):
        raise SpecError(
            f"{where}: a URL with a user, password, key or token in it is not taken:"
            " all who use the service can read specs"
        )
    if _CONTROL.search(text):
        raise SpecError(f"{where}: a text has control characters, or half a character")
    spans = [int(last) - int(first) for first, last in _SPAN.findall(text[:200])]
    too_wild = text.count("*") > MOST_STARS or text.count("{") > MOST_BRACES
    if too_wild or any(span > MOST_SPAN for span in spans):
        raise SpecError(
            f"{where}: a pattern may have at most {MOST_STARS} `*` and {MOST_BRACES}"
            f" braces, of spans of at most {MOST_SPAN:,}"
        )
