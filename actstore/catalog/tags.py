"""The tags of a catalog: names for one of the records under a name.

A tag moves by a new record, numbered and written only where there is none of that
number; the largest number counts. So of two who move it at once both are written down,
one after the other, and nothing is ever changed. A tag's records are never removed:
one that leads to nothing says that the tag is gone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from actstore.catalog import record_keys
from actstore.catalog.catalog import READERS, Catalog, record_values
from actstore.catalog.record_keys import TagKey
from actstore.errors import CatalogError, ObjectError
from actstore.format.json_records import shallow_record
from actstore.format.object_sizes import SMALL_JSON
from schemas.catalog import Kind, TagRecord

MOST_TRIES = 10_000  # numbers that a publisher tries, each taken by another one


def tags_of(catalog: Catalog, kind: Kind, name: str) -> dict[str, str]:
    """Return the digests that the tags of a name lead to, by tag."""
    return {key.tag: digest for key, digest in all_tags(catalog, kind, name)}


def all_tags(
    catalog: Catalog, kind: Kind, name: str | None = None
) -> list[tuple[TagKey, str]]:
    """Return the tags of a kind, or of one name, and the digests they lead to.

    A record of a tag that cannot be read is left out: whoever opens it is told.
    """
    prefix = f"{record_keys.TAGS}/{kind}"
    keys = catalog.storage.list(prefix if name is None else f"{prefix}/{name}")
    # In sorted order the largest number of a tag comes last, and stays.
    last = {
        (key.name, key.tag): key
        for key in map(record_keys.tag_key, keys)
        if key is not None
    }

    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(partial(_read_or_none, catalog), last.values()))
    pairs = zip(last.values(), digests, strict=True)
    return [(key, digest) for key, digest in pairs if digest is not None]


def tagged(catalog: Catalog, kind: Kind, name: str, tag: str) -> str | None:
    """Return the digest of the record that a tag leads to; None for no such tag."""
    number = last_number(catalog, kind, name, tag)
    if number == 0:
        return None
    return _read(catalog, TagKey(kind, name, tag, number)).record


def move_tag(
    catalog: Catalog, kind: Kind, name: str, tag: str, moved: TagRecord
) -> None:
    """Let a tag lead to a record, or to none; nothing is written where it does.

    Raises:
        CatalogError: Others move it all the time.
    """
    number = last_number(catalog, kind, name, tag)
    there = None
    is_readable = True
    if number:
        try:
            there = _read(catalog, TagKey(kind, name, tag, number)).record
        except (ObjectError, CatalogError):
            is_readable = False  # mended by the one that is written after it
    if is_readable and there == moved.record:
        return
    data = moved.to_json().encode()
    for free in range(number + 1, number + 1 + MOST_TRIES):
        if catalog.storage.create(TagKey(kind, name, tag, free).key, data):
            return
    raise CatalogError(
        f"{catalog.url}: the tag {name}:{tag} was moved by others {MOST_TRIES:,} times"
        " meanwhile; try again"
    )


def history(catalog: Catalog, kind: Kind, name: str, tag: str) -> list[str | None]:
    """Return the digests that a tag has led to, in order."""
    last = last_number(catalog, kind, name, tag)
    numbers = range(1, last + 1)
    return [_read_or_none(catalog, TagKey(kind, name, tag, n)) for n in numbers]


def last_number(catalog: Catalog, kind: Kind, name: str, tag: str) -> int:
    """Return the largest number of a tag's records; 0 where there are none."""
    prefix = f"{record_keys.TAGS}/{kind}/{name}/{tag}"
    keys = [record_keys.tag_key(key) for key in catalog.storage.list(prefix)]
    number = max((key.number for key in keys if key is not None), default=0)
    # A listing may lag, but what was written can be read.
    while catalog.storage.exists(TagKey(kind, name, tag, number + 1).key):
        number += 1
    return number


def _read_or_none(catalog: Catalog, key: TagKey) -> str | None:
    """Return the digest that a tag's record leads to; None: to none, or it is bad."""
    try:
        return _read(catalog, key).record
    except (ObjectError, CatalogError):
        return None


def _read(catalog: Catalog, key: TagKey) -> TagRecord:
    where = f"{catalog.url}/{key.key}"
    data = catalog.storage.read(key.key, SMALL_JSON)
    record_values(data, where)
    return shallow_record(TagRecord, data, where)
