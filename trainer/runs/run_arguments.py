"""Checks of arguments that take runs: folders, URLs, or names in a catalog.

They are for `arguments.checked`, and return where the runs lie.
"""

from __future__ import annotations

from typing import Any

from actstore import arguments
from actstore.catalog.names import is_name


def run_folder(value: Any) -> str:
    """Take a run's folder, URL or name in a catalog, and return its folder or URL.

    Raises:
        CatalogError: The name leads to nothing, or to another run than was published.
    """
    return run_url(arguments.folder(value))


def run_folders(value: Any) -> list[str]:
    """Take runs' folders, URLs or names, or one, and return a list."""
    return [run_url(url) for url in arguments.folders(value)]


def run_url(url: str) -> str:
    """Return where a run lies whose folder, URL or name in a catalog is given."""
    if not is_name(url):
        return url
    # Only a name needs the catalog's modules.
    from actstore.catalog.catalog import Catalog
    from actstore.catalog.published_run import checked_run_url

    return checked_run_url(url, Catalog())
