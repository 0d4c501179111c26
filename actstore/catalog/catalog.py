"""A catalog's records: read, listed, added and removed.

Each record is an object of its own, kept under the digest of what it says. So there is
no index that could be lost or written by two at once, and publishing is one exclusive
write that has nothing to wait for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from actstore.catalog import record_keys
from actstore.catalog.published_url import check_no_secret
from actstore.catalog.record_keys import RecordKey
from actstore.errors import (
    CatalogError,
    CorruptError,
    ObjectError,
    SpecError,
)
from actstore.format.json_records import parsed_json, shallow_record
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.machine import command_values
from schemas.catalog import (
    CATALOG_VERSION,
    Kind,
    PublishedRun,
    PublishedStore,
)

Record = PublishedStore | PublishedRun
SCHEMAS: dict[str, type[PublishedStore | PublishedRun]] = {
    "store": PublishedStore,
    "run": PublishedRun,
}
READERS = 16  # records that are read at a time
MOST_RECORDS = 100_000


class Entry(NamedTuple):
    """A record, and where it lies.

    Attributes:
        key: Its kind, name and digest.
        record: What it says.
    """

    key: RecordKey
    record: Record


class Listing(NamedTuple):
    """The records and tags that a catalog lists.

    Attributes:
        entries: The records that can be read.
        problems: A line for each object that is no record, or cannot be read.
    """

    entries: list[Entry]
    problems: list[str]


class Catalog:
    """The records that lie at a URL.

    Attributes:
        storage: Where they lie.
        url: Its URL.
    """

    def __init__(
        self, url: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Open a catalog, which need not be there yet.

        Args:
            url: Its folder; None: the one that ACTSTORE_CATALOG names.
            options: For the file system, unless it is a local folder.

        Raises:
            SpecError: There is neither.
        """
        url = url or command_values.use(command_values.CATALOG)
        if not url:
            raise SpecError(
                "no catalog is known; give --catalog URL, or set"
                f" {command_values.CATALOG}"
            )
        check_no_secret(url, "the catalog's URL")
        self.storage = Storage(url)
        if options and self.storage.local is None:
            self.storage = Storage(url, options)
        self.url = self.storage.url

    def keys(self, kind: Kind, name: str | None = None) -> list[RecordKey]:
        """Return where the records of a kind, or of one name, lie."""
        return self._keys(kind, name)[0]

    def listing(self, kind: Kind, name: str | None = None) -> Listing:
        """Return the records of a kind, or of one name, sorted by name and time."""
        keys, problems = self._keys(kind, name)
        if len(keys) > MOST_RECORDS:
            raise CatalogError(
                f"{self.url}: {len(keys):,} records; at most {MOST_RECORDS:,} are read"
            )
        with ThreadPoolExecutor(READERS) as pool:
            results = list(pool.map(self._read_if_there, keys))
        entries = [result for result in results if isinstance(result, Entry)]
        problems += [result for result in results if isinstance(result, str)]
        entries.sort(key=lambda one: (one.key.name, one.record.when, one.key.digest))
        return Listing(entries, problems)

    def read(self, key: RecordKey) -> Record:
        """Return a record, checked.

        Raises:
            ObjectError: There is none.
            CatalogError: A newer actstore has written it.
            CorruptError: It is none, or not the one that belongs there.
        """
        where = f"{self.url}/{key.key}"
        data = self.storage.read(key.key, SMALL_JSON)
        values = record_values(data, where)
        record = shallow_record(SCHEMAS[key.kind], data, where)
        if record.name != key.name or record_keys.record_digest(values) != key.digest:
            raise CorruptError(f"{where}: it is not the record that was published here")
        return record

    def add(self, record: Record) -> tuple[RecordKey, bool]:
        """Write a record unless it is there.

        Returns where it lies, and whether it is new.
        """
        data = record.to_json().encode()
        digest = record_keys.record_digest(json.loads(data))
        key = RecordKey(record.kind, record.name, digest)
        if len(data) > SMALL_JSON:
            raise CatalogError(
                f"{record.name}: its record has {len(data):,} bytes, at most"
                f" {SMALL_JSON:,} are read; it has too many sites"
            )
        is_new = self.storage.create(key.key, data)
        return key, is_new

    def remove(self, key: RecordKey) -> None:
        """Remove a record; nothing happens where there is none."""
        self.storage.delete(key.key)

    def _keys(self, kind: Kind, name: str | None) -> tuple[list[RecordKey], list[str]]:
        """Return the keys of records, and a line for each object that is none."""
        prefix = f"{record_keys.RECORDS}/{kind}"
        found: list[RecordKey] = []
        problems = []
        for key in self.storage.list(prefix if name is None else f"{prefix}/{name}"):
            parsed = record_keys.record_key(key)
            if parsed is None:
                problems.append(f"{self.url}/{key}: it is no record of a catalog")
            else:
                found.append(parsed)
        return found, problems

    def _read_if_there(self, key: RecordKey) -> Entry | str | None:
        """Return a record, a line about a bad one, or None for one that is gone."""
        try:
            return Entry(key, self.read(key))
        except ObjectError as error:
            return str(error) if isinstance(error, CorruptError) else None
        except CatalogError as error:
            return str(error)


def record_values(data: bytes, where: str) -> dict[str, Any]:
    """Return the values of a record of this version.

    Raises:
        CatalogError: A newer actstore has written it.
        CorruptError: It is no record of a catalog.
    """
    values = parsed_json(data, where)
    if not isinstance(values, dict) or values.get("format") != "actstore catalog":
        raise CorruptError(f"{where}: it is no record of a catalog")
    version = values.get("format_version")
    if isinstance(version, int) and version > CATALOG_VERSION:
        raise CatalogError(
            f"{where}: it is of version {version}, this actstore reads"
            f" {CATALOG_VERSION}; upgrade actstore to read it"
        )
    return values


def newest(entries: Sequence[Entry]) -> Entry:
    """Return the entry that was published last."""
    return max(entries, key=lambda one: (one.record.when, one.key.digest))
