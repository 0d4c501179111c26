"""Helps whoever has left out the `catalog:` of a name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import PREFIX, is_safe
from actstore.errors import ActstoreError, NotAStoreError, ObjectError
from actstore.machine import command_values


@contextlib.contextmanager
def hinting(url: str) -> Iterator[None]:
    """Add to an error that says that nothing lies at `url` what may have been meant."""
    try:
        yield
    except (NotAStoreError, ObjectError) as error:
        hint = name_hint(url)
        if hint is None:
            raise
        raise type(error)(f"{error}; {hint}") from error


def name_hint(url: str) -> str | None:
    """Return what to say of a text that is no folder here, but a name in the catalog.

    None: it is no such name, or no catalog can be asked.
    """
    if not is_safe(url) or Path(url).exists():
        return None
    if not os.environ.get(command_values.CATALOG):
        return None
    with contextlib.suppress(ActstoreError):
        catalog = Catalog()
        if catalog.keys("store", url) or catalog.keys("run", url):
            return f"{PREFIX}{url} is what the catalog {catalog.url} has"
    return None
