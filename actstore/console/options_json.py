"""Reads options that are given as JSON, or as the path of a JSON file.

A file keeps secrets out of the list of processes. No message repeats what was given,
since it may be one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actstore.errors import SpecError

LARGEST_FILE = 1 << 20  # bytes


def parse_options(text: str, where: str) -> dict[str, Any]:
    """Return the options that `text` is, or that the file of that path has.

    Args:
        text: A JSON object, or a path.
        where: What the user gave it as, for messages: `--storage-options`.

    Raises:
        SpecError: It is neither.
    """
    wanted = "wanted a JSON object or the path of a file that has one"
    if not text.lstrip().startswith("{"):
        try:
            with Path(text).expanduser().open("rb") as file:
                text = file.read(LARGEST_FILE).decode()
        except (OSError, ValueError) as error:
            # the error's own text has the path
            why = getattr(error, "strerror", None) or "it is not text"
            raise SpecError(
                f"{where}: {wanted}; what came does not begin with {{, and as a path:"
                f" {why}"
            ) from None
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{where}: {wanted}; what came is no JSON: {error.msg} at line"
            f" {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError):
        raise SpecError(f"{where}: {wanted}; what came is no JSON") from None
    if not isinstance(options, dict):
        raise SpecError(f"{where}: {wanted}; what came is a {type(options).__name__}")
    for key, value in options.items():
        if "://" in key and not isinstance(value, dict):
            raise SpecError(f"{where}: a key with :// holds an object of options")
    return options
