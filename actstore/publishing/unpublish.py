"""Takes names out of a catalog; the stores and runs stay where they are."""

from __future__ import annotations

import os
from collections.abc import Iterable

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.catalog import Catalog
from actstore.catalog.names import PREFIX, SHOWN_ID, parsed_name
from actstore.catalog.record_keys import RecordKey
from actstore.catalog.resolve import nothing_of
from actstore.catalog.tags import all_tags, history, move_tag
from actstore.errors import CatalogError
from actstore.publishing.publish import now
from schemas.catalog import Kind, TagRecord


@checked(
    name=arguments.text,
    kind=optional(arguments.choice("store", "run")),
    catalog=optional(arguments.folder),
)
def unpublish(
    name: str,
    *,
    kind: Kind | None = None,
    catalog: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Take a name out of a catalog; the store or run stays where it is.

    `NAME` goes with all that was published under it, `NAME:TAG` only the tag (with what
    it leads to, where no other tag does), `NAME:CONTENT-ID` what has that content.

    Args:
        name: The name.
        kind: "store" or "run", where both have the name.
        catalog: The catalog's folder or URL; None: the one that ACTSTORE_CATALOG names.

    Returns:
        What is gone, such as `catalog:mini:latest`.

    Raises:
        CatalogError: There is nothing of that name, or both a store and a run.
        SpecError: No catalog is known.

    Examples:
        >>> import actstore
        >>> _ = actstore.publish("stores/small", "mini-mlp", catalog="team")
        >>> actstore.unpublish("mini-mlp", catalog="team")
        ['catalog:mini-mlp:latest']
    """
    place = Catalog(arguments.path_or_none(catalog))
    wanted = parsed_name(name)
    of_kind = kind or _only_kind(place, wanted.name)
    keys = place.keys(of_kind, wanted.name)
    tags = all_tags(place, of_kind, wanted.name)
    if wanted.tag is not None:
        digests = [digest for key, digest in tags if key.tag == wanted.tag]
        if not digests:
            raise nothing_of(place, of_kind, wanted)
        others = {digest for key, digest in tags if key.tag != wanted.tag}
        if digests[0] in others:
            _point(place, of_kind, wanted.name, wanted.tag, None)
            return [f"{PREFIX}{wanted.name}:{wanted.tag}"]
        keys = [key for key in keys if key.digest in digests]
        if not keys:  # its record is gone already
            _point(place, of_kind, wanted.name, wanted.tag, None)
            return [f"{PREFIX}{wanted.name}:{wanted.tag}"]
    elif wanted.content_id is not None:
        listing = place.listing(of_kind, wanted.name)
        keys = [
            entry.key
            for entry in listing.entries
            if entry.record.content_id.startswith(wanted.content_id)
        ]
    if not keys:
        raise nothing_of(place, of_kind, wanted)
    return remove_records(place, keys)


def remove_records(catalog: Catalog, keys: Iterable[RecordKey]) -> list[str]:
    """Remove records, and move the tags that lead to them.

    A tag goes back to what it has led to before, as far as that is there; else it is
    gone.

    Returns:
        What each record was opened by.
    """
    gone = []
    for key in keys:
        tags = [
            one.tag
            for one, digest in all_tags(catalog, key.kind, key.name)
            if digest == key.digest
        ]
        catalog.remove(key)
        for tag in tags:
            _point_back(catalog, key, tag)
            gone.append(f"{PREFIX}{key.name}:{tag}")
        if not tags:
            gone.append(f"{PREFIX}{key.name} ({key.digest[:SHOWN_ID]})")
    return list(dict.fromkeys(gone))


def _point_back(catalog: Catalog, key: RecordKey, tag: str) -> None:
    """Let a tag lead to the last record that it led to and that is there."""
    there = {one.digest for one in catalog.keys(key.kind, key.name)} - {key.digest}
    led_to = history(catalog, key.kind, key.name, tag)
    before = [digest for digest in led_to if digest in there]
    _point(catalog, key.kind, key.name, tag, before[-1] if before else None)


def _point(
    catalog: Catalog, kind: Kind, name: str, tag: str, digest: str | None
) -> None:
    move_tag(catalog, kind, name, tag, TagRecord(record=digest, when=now()))


def _only_kind(catalog: Catalog, name: str) -> Kind:
    """Return what a name is of.

    Raises:
        CatalogError: It is of nothing, or of both a store and a run.
    """
    kinds: list[Kind] = [kind for kind in ("store", "run") if catalog.keys(kind, name)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise CatalogError(
            f"{PREFIX}{name}: a store and a run have that name; give --kind store or"
            " --kind run"
        )
    raise CatalogError(
        f"{PREFIX}{name}: nothing of that name is published in {catalog.url};"
        " `actstore ls` and `actstore runs` list what is"
    )
