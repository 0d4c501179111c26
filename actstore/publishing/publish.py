"""Publishes a finished store or run in a catalog, under a name that a team opens."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.catalog import Catalog, Record
from actstore.catalog.name_hint import hinting
from actstore.catalog.names import LATEST, PREFIX, is_name, parsed_name
from actstore.catalog.published_place import resolved_place
from actstore.catalog.published_run import RUN
from actstore.catalog.published_url import check_no_secret, recorded_url
from actstore.catalog.tags import move_tag
from actstore.errors import CatalogError, SpecError
from actstore.format.storage import Storage
from actstore.publishing.make_records import run_record, store_record
from schemas.catalog import TagRecord


class Published(NamedTuple):
    """A store or run that was published.

    Attributes:
        record: The record, as the catalog has it.
        name: The name that opens it, such as `catalog:gpt2-tinystories:latest`.
        was_there: Whether the same had been published under that name before.
        note: What others should know who open it; None for nothing.
    """

    record: Record
    name: str
    was_there: bool
    note: str | None


class Publisher(NamedTuple):
    """Who publishes, when, and with which version.

    Attributes:
        by: Who; None: left out.
        when: Date and time in UTC, ISO 8601.
        actstore: The version of actstore.
    """

    by: str | None
    when: str
    actstore: str


@checked(
    url=arguments.folder,
    name=arguments.text,
    catalog=optional(arguments.folder),
    by=optional(arguments.text),
    anonymous=arguments.flag,
    options=optional(arguments.mapping),
)
def publish(
    url: str | os.PathLike[str],
    name: str,
    *,
    catalog: str | os.PathLike[str] | None = None,
    by: str | None = None,
    anonymous: bool = False,
    options: dict[str, Any] | None = None,
) -> Published:
    """Publish a finished store or run under a name.

    Publishing the same again changes nothing. Other content under the same name is
    another version of it; the tag leads to what was published last.

    Args:
        url: The store or run: a folder, a URL, or another name of it (`catalog:...`).
        name: The name, and after a colon a tag; without one the tag is `latest`.
        catalog: The catalog's folder or URL; None: the one that ACTSTORE_CATALOG names.
        by: Who publishes it; None: the user's name on this machine.
        anonymous: Record nobody's name.
        options: For the file system, such as credentials; they are not recorded.

    Raises:
        CatalogError: The name cannot be one, or there is no store or run.
        UnfinishedError: The harvest has not ended.
        CorruptError: The store's manifest, or what it counts, cannot be.
        SpecError: No catalog is known, or the URL has a password in it.

    Examples:
        >>> import actstore
        >>> actstore.publish("stores/small", "mini-mlp", catalog="team").name
        'catalog:mini-mlp:latest'
    """
    if anonymous and by is not None:
        raise SpecError("--by and --anonymous: give one of them")
    place = Catalog(arguments.path_or_none(catalog))
    wanted = parsed_name(name)
    if wanted.content_id is not None:
        raise CatalogError(
            f"{name!r}: a tag cannot look like a content id; choose another one"
        )
    tag = wanted.tag or LATEST
    publisher = _publisher(by, anonymous=anonymous)
    source = _source(str(url), place, options)
    recorded = recorded_url(source.url, place.url)
    values = {"name": wanted.name, "url": recorded, **publisher._asdict()}
    record: Record
    if source.exists(RUN):
        record = run_record(source, values)
    else:
        with hinting(str(url)):
            record = store_record(source, values)
    key, is_new = place.add(record)
    moved = TagRecord(record=key.digest, by=publisher.by, when=publisher.when)
    move_tag(place, record.kind, wanted.name, tag, moved)
    return Published(
        record=place.read(key),
        name=f"{PREFIX}{wanted.name}:{tag}",
        was_there=not is_new,
        note=_note(source, place),
    )


def _publisher(by: str | None, *, anonymous: bool) -> Publisher:
    """Return who publishes, and when."""
    from actstore import __version__

    who = None
    if not anonymous:
        who = by if by is not None else _user()
    return Publisher(who, now(), __version__)


def now() -> str:
    """Return the date and time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str | None:
    """Return the user's name on this machine; None where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without users
        return None


def _source(url: str, catalog: Catalog, options: dict[str, Any] | None) -> Storage:
    """Return where that lies which is to be published."""
    check_no_secret(url, "the URL to publish")
    if is_name(url):
        url = resolved_place(url, catalog).url
    return Storage(url, options)


def _note(source: Storage, catalog: Catalog) -> str | None:
    """Return what to say where others can hardly open what was published."""
    if source.local is None or catalog.storage.local is not None:
        return None
    return (
        f"{source.url} is a folder of this machine, and the catalog is not: it opens"
        " only where that folder is; `actstore push` copies it to where all can read"
    )
