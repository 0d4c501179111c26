"""The stores that the service may train from, and the norms of each.

To look at every folder takes long: what was found is kept for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import PREFIX
from actstore.catalog.published_url import opened_url
from actstore.errors import ActstoreError, SpecError
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from actstore.inspect.list_stores import stores as stores_at
from actstore.store.norms_of_sites import compute_norms
from actstore.store.open_store import open as open_store
from schemas.service import ServiceStore, SiteNorms
from trainer.passes.allowed_stores import AllowedStores

FRESH_S = 30.0
MOST_STORES = 1000


class StoreList:
    """The stores of a service."""

    def __init__(self, allowed: AllowedStores, catalog: str | None) -> None:
        """Set where stores are looked for.

        Args:
            allowed: The prefixes, at and directly below which stores are found.
            catalog: The URL of the catalog whose stores are listed too; None: none.
        """
        self._allowed = allowed
        self._catalog = catalog
        self._found: list[ServiceStore] = []
        self._norms: dict[str, list[SiteNorms]] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()

    def stores(self) -> list[ServiceStore]:
        """Return the stores, sorted by name and URL."""
        with self._lock:
            if time.monotonic() - self._looked > FRESH_S:
                self._found = self._look()
                self._looked = time.monotonic()
            return self._found

    def norms(self, url: str) -> list[SiteNorms]:
        """Return the norms of a store's sites, in the order of layers.

        Raises:
            SpecError: It is not one that the service may read.
            StoreError: It cannot be read.
        """
        store = open_store(self._allowed.check(url))
        content_id = store.manifest.content_id
        if content_id not in self._norms:
            table = compute_norms(store)
            names = list(SiteNorms.model_fields)
            columns = zip(*(table[name] for name in names), strict=True)
            if len(self._norms) > MOST_STORES:
                self._norms.clear()
            self._norms[content_id] = [
                SiteNorms.model_validate(
                    {
                        name: value if isinstance(value, str) else float(value)
                        for name, value in zip(names, values, strict=True)
                    }
                )
                for values in columns
            ]
        return self._norms[content_id]

    def _look(self) -> list[ServiceStore]:
        """Look for stores, in the catalog first: its names are what users know."""
        by_url: dict[str, ServiceStore] = {}
        for name, url in (*self._published(), *self._in_folders()):
            if url in by_url or len(by_url) >= MOST_STORES:
                continue
            try:
                by_url[url] = _described(name, url)
            except ActstoreError:
                # One that cannot be read hides no other.
                continue
        return sorted(by_url.values(), key=lambda store: (store.name or "~", store.url))

    def _published(self) -> Iterator[tuple[str, str]]:
        """Yield names of the catalog's stores that the service may read, and URLs."""
        if self._catalog is None:
            return
        try:
            catalog = Catalog(self._catalog)
            entries = catalog.listing("store").entries
        except ActstoreError:
            return
        for entry in reversed(entries):
            url = opened_url(entry.record.url, catalog.url)
            try:
                yield f"{PREFIX}{entry.key.name}", self._allowed.check(url)
            except SpecError:
                continue

    def _in_folders(self) -> Iterator[tuple[None, str]]:
        """Yield the URLs of stores at the prefixes and directly below them."""
        for prefix in self._allowed.prefixes:
            try:
                entries = stores_at(prefix)
            except ActstoreError:
                continue
            for entry in entries:
                try:
                    yield None, self._allowed.check(entry.url)
                except SpecError:
                    continue


def _described(name: str | None, url: str) -> ServiceStore:
    """Return what is told of a store."""
    manifest = read_manifest(Storage(url))
    widths = {site.d for site in manifest.sites}
    return ServiceStore(
        name=name,
        url=url,
        sites=[site.name for site in manifest.sites],
        rows=manifest.n_rows,
        d=widths.pop() if len(widths) == 1 else 0,
        model=manifest.spec.model.name,
        bytes=manifest.n_bytes,
    )
