"""Adds up what stores take of a place: by store, or by site of one store."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.catalog import Catalog
from actstore.errors import NotAStoreError
from actstore.format import object_keys
from actstore.format.storage import ListedObject, Storage
from actstore.publishing.list_published import list_published
from actstore.publishing.store_keys import REMOVAL
from actstore.store.open_store import store_url
from schemas.catalog import PublishedStore

OF_SITES = ("acts", "norm", "scale", "step")
TOKENS = "tokens and rows"
RECORDS = "records and metadata"
OTHERS = "other files"


class Use(NamedTuple):
    """The room that something takes.

    Attributes:
        name: A store's URL, the name of a site, or what else it is.
        objects: How many objects.
        bytes: Bytes of these.
    """

    name: str
    objects: int
    bytes: int


@checked(url=arguments.folder, options=optional(arguments.mapping))
def usage(
    url: str | os.PathLike[str], options: dict[str, Any] | None = None
) -> list[Use]:
    """Return what a store takes by site, or what the stores below a URL take.

    The sizes are those of the place's own listing, the largest first.

    Args:
        url: A store or its name in the catalog, or a folder with stores anywhere below
            it.
        options: For the file system, such as credentials.

    Raises:
        NotAStoreError: There is nothing.
        StorageError: The place cannot be reached.

    Examples:
        >>> import actstore
        >>> [used.name for used in actstore.usage("stores")]
        ['stores/small']
        >>> used = actstore.usage("stores/small")
        >>> "tokens and rows" in [part.name for part in used]
        True
    """
    storage = Storage(store_url(str(url), options), options)
    found = storage.objects()
    if not found:
        raise NotAStoreError(f"{url}: there is nothing; check the URL")
    roots = store_roots(found)
    there = {one.key for one in found}
    is_store = not there.isdisjoint((object_keys.MANIFEST, object_keys.PLAN))
    totals: dict[str, Use] = {}
    for one in found:
        if is_store:
            name = _part(one.key)
        else:
            root = root_of(one.key, roots)
            name = storage.child(root).url if root else OTHERS
        used = totals.get(name, Use(name, 0, 0))
        totals[name] = Use(name, used.objects + 1, used.bytes + one.bytes)
    return sorted(totals.values(), key=lambda used: (-used.bytes, used.name))


def store_roots(found: list[ListedObject]) -> set[str]:
    """Return the folders that stores lie in, finished or not; "" is the URL itself."""
    marks = {object_keys.MANIFEST, object_keys.plan_key(), object_keys.COPY, REMOVAL}
    roots = set()
    for one in found:
        folder, _, name = one.key.rpartition("/")
        if name in marks:
            roots.add(folder)
    return roots


def root_of(key: str, roots: set[str]) -> str | None:
    """Return the store's folder that an object lies in, the deepest; None: none."""
    folder = key.rpartition("/")[0]
    while folder:
        if folder in roots:
            return folder
        folder = folder.rpartition("/")[0]
    return "" if "" in roots else None


def _part(key: str) -> str:
    """Return what part of a store an object is of: a site, or what all share."""
    first, _, rest = key.partition("/")
    if first in OF_SITES and rest != "zarr.json":
        return rest.partition("/c/")[0].removesuffix("/zarr.json")
    return TOKENS if first in {"tokens", "rows"} else RECORDS


def published_usage() -> list[Use]:
    """Return what each published store takes, by the records, the largest first.

    Raises:
        SpecError: No catalog is known.
    """
    found = list_published(Catalog(), "store", {})
    of_url = {}
    for one in found.publications:
        assert isinstance(one.record, PublishedStore)
        of_url[one.url] = Use(f"{one.name}  {one.url}", 1, one.record.bytes)
    return sorted(of_url.values(), key=lambda used: (-used.bytes, used.name))
