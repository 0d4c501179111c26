"""Removes a finished store: its objects, and its records in the catalog."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.catalog import Catalog, Entry
from actstore.catalog.name_hint import hinting
from actstore.catalog.names import PREFIX, is_name
from actstore.catalog.published_store import check_content
from actstore.catalog.published_url import opened_url
from actstore.catalog.resolve import resolved
from actstore.errors import (
    CatalogError,
    CorruptError,
    NotAStoreError,
    ObjectError,
    UnfinishedError,
)
from actstore.format.absolute_url import absolute
from actstore.format.content_id import content_ids
from actstore.format.storage import ListedObject, Storage
from actstore.machine import command_values
from actstore.publishing.remove_objects import (
    objects_of,
    remove_objects,
)
from actstore.publishing.store_keys import REMOVAL, keys_of
from actstore.publishing.unpublish import remove_records
from schemas.catalog import PublishedRun

SHOWN = 3  # names that a message repeats


class Removal(NamedTuple):
    """The things that `remove` takes away.

    Attributes:
        url: The store.
        objects: How many objects it has.
        bytes: Bytes of these.
        names: What it is published as.
    """

    url: str
    objects: int
    bytes: int
    names: tuple[str, ...]


class PlannedRemoval(NamedTuple):
    """A removal that may be carried out.

    Attributes:
        removal: What it takes away.
        storage: The store's folder.
        found: The store's objects.
        entries: Its records.
        catalog: The catalog; None where none is known.
    """

    removal: Removal
    storage: Storage
    found: list[ListedObject]
    entries: list[Entry]
    catalog: Catalog | None


@checked(
    store=arguments.folder,
    catalog=optional(arguments.folder),
    options=optional(arguments.mapping),
)
def remove(
    store: str | os.PathLike[str],
    *,
    catalog: str | os.PathLike[str] | None = None,
    options: dict[str, Any] | None = None,
) -> Removal:
    """Remove a finished store, without asking.

    Only its own objects go; other files in its folder stay. Its records in the catalog
    go as well. One that was stopped goes on when it is called again.

    Args:
        store: The store's folder, URL or name in the catalog.
        catalog: The catalog's folder or URL; None: the one that ACTSTORE_CATALOG names,
            if it does.
        options: For the store's file system, such as credentials.

    Raises:
        CatalogError: A published run refers to the store, or the name leads to nothing,
            or to another store than was published.
        UnfinishedError: The harvest has not ended.
        NotAStoreError: There is no store.

    Examples:
        >>> import actstore
        >>> actstore.remove("stores/small").url
        'stores/small'
    """
    planned = plan_removal(str(store), arguments.path_or_none(catalog), options)
    carry_out(planned, lambda _: None)
    return planned.removal


def plan_removal(
    store: str, catalog_url: str | None, options: dict[str, Any] | None = None
) -> PlannedRemoval:
    """Return what removing a store takes away, if it may be removed.

    Raises:
        CatalogError: As `remove`; so the other errors.
    """
    catalog = _catalog(catalog_url, needed=is_name(store))
    content_id = None
    url = store
    found_by_name = None
    if is_name(store) and catalog is not None:
        found_by_name = resolved(store, "store", catalog)
        url = found_by_name.url
        content_id = found_by_name.content_id
    storage = Storage(url, options)
    try:
        keys, manifest = keys_of(storage)
    except CorruptError:
        raise
    except ObjectError:
        keys = None
        manifest = None
    if manifest is None and not storage.exists(REMOVAL):
        with hinting(store):
            raise _no_store(storage, is_unfinished=keys is not None)
    if found_by_name is not None and manifest is not None:
        check_content(found_by_name, manifest)
    entries = []
    if catalog is not None:
        ids = set() if content_id is None else {content_id}
        if manifest is not None:
            ids |= set(content_ids(manifest))
        _check_no_runs(catalog, storage.url, ids)
        entries = _entries_at(catalog, storage.url)
    found = [] if keys is None else objects_of(storage, keys)
    names = sorted({f"{PREFIX}{entry.record.name}" for entry in entries})
    removal = Removal(
        storage.url, len(found), sum(one.bytes for one in found), tuple(names)
    )
    return PlannedRemoval(removal, storage, found, entries, catalog)


def carry_out(planned: PlannedRemoval, progress: Callable[[int], None]) -> None:
    """Remove what was planned; `progress` is given how many objects are gone."""

    def records() -> None:
        if planned.catalog is not None:
            remove_records(planned.catalog, [entry.key for entry in planned.entries])

    keys = [one.key for one in planned.found]
    remove_objects(planned.storage, keys, progress, records)


def _catalog(url: str | None, *, needed: bool) -> Catalog | None:
    """Return the catalog; None where none is known, and none is needed."""
    known = url or command_values.use(command_values.CATALOG)
    if known is None and not needed:
        return None
    return Catalog(url)


def _no_store(storage: Storage, *, is_unfinished: bool) -> Exception:
    if is_unfinished:
        return UnfinishedError(
            f"{storage.url}: this harvest (or import, or copy) has not ended, and may"
            " be going on; `actstore gc` removes it once nothing was written there for"
            " a day"
        )
    return NotAStoreError(
        f"{storage.url}: wanted a store, but there is none; check the URL (`actstore"
        " ls` lists stores)"
    )


def _entries_at(catalog: Catalog, url: str) -> list[Entry]:
    """Return the records of the store at a URL."""
    place = absolute(url)
    return [
        entry
        for entry in catalog.listing("store").entries
        if opened_url(entry.record.url, catalog.url) == place
    ]


def _check_no_runs(catalog: Catalog, url: str, ids: set[str]) -> None:
    """Raise CatalogError where a published run was trained from a store."""
    listing = catalog.listing("run")
    if listing.problems:
        raise CatalogError(
            f"{listing.problems[0]}; it may be of a run that needs the store, so"
            " nothing is removed: mend or remove that record first"
        )
    place = absolute(url)
    runs = []
    for entry in listing.entries:
        record = entry.record
        assert isinstance(record, PublishedRun)
        if record.store == place or record.store_content_id in ids:
            runs.append(f"{PREFIX}{record.name}")
    if runs:
        names = sorted(set(runs))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise CatalogError(
            f"{url}: published runs were trained from it: {', '.join(names[:SHOWN])}"
            f"{more}; `actstore unpublish` these first, if the store must go"
        )
