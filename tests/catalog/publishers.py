"""Publishes in a process of its own: `python -m tests.catalog.publishers CATALOG N`.

It waits for a file, so that all begin at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from actstore.catalog.catalog import Catalog
from actstore.catalog.tags import move_tag
from schemas.catalog import PublishedStore, TagRecord

WHEN = "2026-01-01T00:00:00+00:00"


def record(name: str, number: int) -> PublishedStore:
    """A record of a store that no other publisher has."""
    return PublishedStore(
        name=name,
        url=f"s3://team/{number}",
        content_id=f"{number:064x}",
        model="m",
        sites=("a",),
        when=WHEN,
        actstore="0.1.0",
        corpus=None,
        rows=number,
        bytes=number,
        dtype="int8",
    )


def publish(catalog: Catalog, number: int) -> None:
    """Publish one store under a shared name, and one under a name of its own."""
    for name in ("shared", f"own-{number}"):
        key, is_new = catalog.add(record(name, number))
        assert is_new
        moved = TagRecord(record=key.digest, by=str(number), when=WHEN)
        move_tag(catalog, "store", name, "latest", moved)


def main() -> None:
    """Wait until all are there, then publish."""
    url, number, folder = sys.argv[1:]
    catalog = Catalog(url)
    (Path(folder) / number).touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.002)
    publish(catalog, int(number))


if __name__ == "__main__":
    main()
