"""Finds what a name leads to where a store and a run are both welcome."""

from __future__ import annotations

from typing import Any

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import parsed_name
from actstore.catalog.published_run import checked_run_url
from actstore.catalog.published_store import checked_url
from actstore.catalog.resolve import Resolved, resolved
from actstore.errors import CatalogError
from schemas.catalog import Kind

KINDS: tuple[Kind, ...] = ("store", "run")


def resolved_place(name: str, catalog: Catalog) -> Resolved:
    """Return what a name leads to, be it a store or a run.

    Raises:
        CatalogError: It leads to nothing, or to both.
        CorruptError: Its record is damaged.
    """
    found: list[Resolved] = []
    errors: list[CatalogError] = []
    for kind in KINDS:
        try:
            found.append(resolved(name, kind, catalog))
        except CatalogError as error:
            errors.append(error)
    if len(found) == 1:
        return found[0]
    if found:
        store, run = found
        raise CatalogError(
            f"{name}: a store and a run have that name; give the URL of the one that is"
            f" meant: {store.url} or {run.url}"
        )
    # Where only runs have the name, what is said of runs is what helps.
    of_store, of_run = errors
    raise of_run if catalog.keys("run", parsed_name(name).name) else of_store


def checked_place(
    name: str, catalog: Catalog, options: dict[str, Any] | None = None
) -> str:
    """Return the URL of the store or run that a name leads to.

    Args:
        name: The name, such as `catalog:gpt2-tinystories`.
        catalog: The catalog.
        options: For the file system of the store or run.

    Raises:
        CatalogError: The name leads to nothing, to a store and a run, or to one that
            was removed, replaced or changed.
    """
    if resolved_place(name, catalog).entry.key.kind == "store":
        return checked_url(name, catalog, options)
    return checked_run_url(name, catalog, options)
