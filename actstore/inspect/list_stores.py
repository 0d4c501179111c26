"""Which stores lie at a URL and directly below it."""

from __future__ import annotations

from typing import NamedTuple

from actstore.errors import ActstoreError
from actstore.format import keys
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage


class Entry(NamedTuple):
    """One store: its URL, whether it is finished, and a line about it."""

    url: str
    finished: bool
    text: str


def stores(url: str) -> list[Entry]:
    """Stores at the URL itself and in its folders, sorted by name; unfinished ones say
    so.
    """
    root = Storage(url)
    places = [root, *(root.child(name) for name in root.folders())]
    return [entry for place in places if (entry := _entry(place)) is not None]


def _entry(storage: Storage) -> Entry | None:
    if not storage.exists(keys.MANIFEST):
        return (
            Entry(storage.url, False, "unfinished")
            if storage.exists(keys.plan_key())
            else None
        )
    try:
        m = read_manifest(storage)
    except ActstoreError as error:
        return Entry(storage.url, False, str(error))
    text = (
        f"{m.spec.model.name}  {len(m.sites)} sites  {m.n_rows:,} rows "
        f" {m.n_bytes / 1e6:,.1f} MB  {m.content_id[:12]}"
    )
    return Entry(storage.url, True, text)
