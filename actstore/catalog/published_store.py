"""Checks that the store that a name leads to is the one that was published."""

from __future__ import annotations

from typing import Any

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import SHOWN_ID
from actstore.catalog.resolve import Resolved, resolved
from actstore.errors import CatalogError, NotAStoreError, UnfinishedError
from actstore.format.content_id import content_ids
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from schemas.manifest import StoreManifest


def checked_url(
    name: str, catalog: Catalog, options: dict[str, Any] | None = None
) -> str:
    """Return the URL that a store's name leads to.

    A store that `extend` has made larger since then counts as the one published.

    Args:
        name: The name, such as `catalog:gpt2-tinystories`.
        catalog: The catalog.
        options: For the store's file system.

    Raises:
        CatalogError: The name leads to nothing, or the store was removed or replaced.
    """
    found = resolved(name, "store", catalog)
    try:
        manifest = read_manifest(Storage(found.url, options))
    except (NotAStoreError, UnfinishedError) as error:
        raise CatalogError(
            f"{found.name}: the store that was published is gone: {error}"
        ) from error
    check_content(found, manifest)
    return found.url


def check_content(found: Resolved, manifest: StoreManifest) -> None:
    """Raise CatalogError where a store is not the one that was published."""
    if found.content_id in content_ids(manifest):
        return
    raise CatalogError(
        f"{found.name}: the store at {found.url} was replaced since it was published:"
        f" its content id is {manifest.content_id[:SHOWN_ID]}..., wanted"
        f" {found.content_id[:SHOWN_ID]}...; publish what is there now, or name another"
        " version"
    )
