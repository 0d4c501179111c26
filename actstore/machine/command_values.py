"""Values that hold while a command runs, in this process and in those that it starts.

They are environment variables, so that workers inherit them and a user can set them for
a whole shell. Importing this loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

STORAGE_OPTIONS = "ACTSTORE_STORAGE_OPTIONS"
CACHE = "ACTSTORE_CACHE"
CACHE_SIZE = "ACTSTORE_CACHE_SIZE"
CATALOG = "ACTSTORE_CATALOG"  # the URL of the team's catalog

# the variables that something asked for since a command began
_used: set[str] = set()


def use(variable: str) -> str | None:
    """Return a variable's value, or None; whoever asks acts on it."""
    _used.add(variable)
    # An empty variable is what `export NAME=` leaves: not set.
    return os.environ.get(variable) or None


def was_used(variable: str) -> bool:
    """Return whether anything in this process asked for a variable in the block."""
    return variable in _used


@contextlib.contextmanager
def during(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of a `with` block; then they are as before."""
    before = {variable: os.environ.get(variable) for variable in values}
    _used.difference_update(values)
    os.environ.update(values)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
