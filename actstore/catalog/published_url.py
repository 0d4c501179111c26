"""URLs as a catalog records them.

What lies inside the catalog's own folder is recorded by the path from there, so that
the whole folder or bucket may be moved. All else is recorded by its absolute URL.
"""

from __future__ import annotations

from actstore.errors import SpecError
from actstore.format.absolute_url import absolute
from schemas.catalog import has_secret


def recorded_url(url: str, catalog: str) -> str:
    """Return what a catalog at the URL `catalog` records of a URL.

    Raises:
        SpecError: It has a password, a key or a token in it.
    """
    check_no_secret(url, "the URL to publish")
    whole = absolute(url)
    root = absolute(catalog).rstrip("/") + "/"
    inside = whole.removeprefix(root)
    # The catalog's own folder is published by its absolute URL.
    return inside or whole


def opened_url(recorded: str, catalog: str) -> str:
    """Return the absolute URL of what a catalog has recorded."""
    if "://" in recorded or recorded.startswith("/"):
        return recorded
    return f"{absolute(catalog).rstrip('/')}/{recorded}"


def check_no_secret(url: str, what: str) -> None:
    """Raise SpecError where a URL has a password, a key or a token in it."""
    if has_secret(url):
        raise SpecError(
            f"{what}: it has a password, key or token in it, which is never recorded;"
            " give the bare URL, and credentials by the environment or"
            " --storage-options"
        )
