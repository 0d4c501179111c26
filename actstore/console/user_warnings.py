"""Warns the user, at the line of the user's own code that called the project."""

from __future__ import annotations

import sys
import warnings

from actstore.arguments import for_caller

OURS = {"actstore", "schemas", "trainer"}


def warn(text: str, category: type[Warning]) -> None:
    """Give a warning that Python shows with the user's line.

    That is the innermost line on the way here that is not the project's.
    """
    frame = sys._getframe(1)
    level = 2  # `warnings.warn` counts this function as 1
    while frame.f_back is not None and _is_ours(frame.f_globals):
        frame = frame.f_back
        level += 1
    warnings.warn(for_caller(text), category, stacklevel=level)


def _is_ours(names: dict[str, object]) -> bool:
    module = names.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in OURS
