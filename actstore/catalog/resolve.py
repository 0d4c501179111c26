"""Finds what a name of a catalog leads to."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from actstore.catalog.catalog import Catalog, Entry, newest
from actstore.catalog.names import (
    LATEST,
    PREFIX,
    SHOWN_ID,
    CatalogName,
    is_name,
    parsed_name,
)
from actstore.catalog.published_url import opened_url
from actstore.catalog.record_keys import RecordKey
from actstore.catalog.tags import tagged, tags_of
from actstore.errors import CatalogError, CorruptError, ObjectError
from schemas.catalog import Kind


class Resolved(NamedTuple):
    """Where a name leads.

    Attributes:
        url: The absolute URL of the store or run.
        content_id: The content id that was published.
        entry: The record.
        name: The name, with its tag.
    """

    url: str
    content_id: str
    entry: Entry
    name: str


def resolve(
    url: str, kind: Kind = "store", options: dict[str, Any] | None = None
) -> str:
    """Return the URL that a `catalog:` name leads to; any other text as it is.

    Args:
        url: A name, a path or a URL.
        kind: What the name is of: a store, or a run.
        options: For the catalog's file system, unless it is a local folder.

    Raises:
        CatalogError: There is nothing of that name, or it is not clear which is meant.
        SpecError: It is a name, and no catalog is known.
    """
    if not is_name(url):
        return url
    return resolved(url, kind, Catalog(None, options)).url


def resolved(text: str, kind: Kind, catalog: Catalog) -> Resolved:
    """Return what a name leads to, with its record.

    Raises:
        CatalogError: There is nothing of that name, or it is not clear which is meant.
        CorruptError: Its record is damaged.
    """
    name = parsed_name(text)
    entry = _entry(catalog, kind, name)
    url = opened_url(entry.record.url, catalog.url)
    return Resolved(url, entry.record.content_id, entry, name.text)


def _entry(catalog: Catalog, kind: Kind, name: CatalogName) -> Entry:
    if name.content_id is not None:
        return _of_content(catalog, kind, name, name.content_id)
    digest = tagged(catalog, kind, name.name, name.tag or LATEST)
    if digest is not None:
        return _read(catalog, RecordKey(kind, name.name, digest), name)
    if name.tag is None:
        # Without a tag there is no doubt where there is only one.
        keys = catalog.keys(kind, name.name)
        if len(keys) == 1:
            return _read(catalog, keys[0], name)
    raise nothing_of(catalog, kind, name)


def _of_content(
    catalog: Catalog, kind: Kind, name: CatalogName, beginning: str
) -> Entry:
    """Return the record of a content id, of which some characters are given."""
    listing = catalog.listing(kind, name.name)
    found = [
        one for one in listing.entries if one.record.content_id.startswith(beginning)
    ]
    ids = sorted({one.record.content_id for one in found})
    if not ids:
        raise nothing_of(catalog, kind, name)
    if len(ids) > 1:
        raise CatalogError(
            f"{name.text}: that may be any of {', '.join(ids)}; give more characters"
        )
    # The same content at two places: the later one, from which the other has moved.
    return newest(found)


def _read(catalog: Catalog, key: RecordKey, name: CatalogName) -> Entry:
    try:
        return Entry(key, catalog.read(key))
    except CorruptError:
        raise
    except ObjectError:
        raise CatalogError(
            f"{name.text}: its record in {catalog.url} was removed; `actstore ls`"
            " lists what there is"
        ) from None


def nothing_of(catalog: Catalog, kind: Kind, name: CatalogName) -> CatalogError:
    """Return what to say where a name leads to nothing."""
    keys = catalog.keys(kind)
    of_name = [key for key in keys if key.name == name.name]
    command = "`actstore ls`" if kind == "store" else "`actstore runs`"
    if not of_name:
        names = sorted({key.name for key in keys})
        near = difflib.get_close_matches(name.name, names, 3, 0.5) or names[:3]
        others = f"there is {', '.join(near)}; " if near else ""
        return CatalogError(
            f"{name.text}: no {kind} of that name is published in {catalog.url};"
            f" {others}{command} lists them all"
        )
    entries = catalog.listing(kind, name.name).entries
    ids = sorted({one.record.content_id[:SHOWN_ID] for one in entries})
    versions = [*sorted(tags_of(catalog, kind, name.name)), *ids]
    wanted = name.tag or name.content_id or LATEST
    return CatalogError(
        f"{name.text}: {PREFIX}{name.name} has no {wanted}; say which of"
        f" {', '.join(versions)} is meant, such as {PREFIX}{name.name}:{versions[0]}"
        if versions
        else f"{name.text}: none of its records in {catalog.url} can be read"
    )
