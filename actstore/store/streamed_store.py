"""The part of a store that a stream needs, whether it is finished or still grows."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actstore.format.storage import Storage
from actstore.store.stored_objects import StoredObjects
from schemas.harvest import Layout
from schemas.manifest import NormStats, StoreManifest
from schemas.source import Site


class StreamedStore(Protocol):
    """A `Store`, or a `FollowedStore`: both have what is named here.

    Attributes:
        storage: Where the store lies.
        manifest: What it holds; of a store that grows, what is planned.
        layout: Sizes of its units and chunks.
        sites: Names of its sites.
        norms: Statistics of the norms of its training rows, by site.
    """

    storage: Storage
    manifest: StoreManifest
    layout: Layout
    sites: tuple[str, ...]
    norms: dict[str, NormStats]

    @property
    def url(self) -> str:
        """The store's address."""
        ...

    @property
    def objects(self) -> StoredObjects:
        """The objects that its rows are read from."""
        ...

    def site(self, name: str) -> Site:
        """Return a site by name. Raises SiteError with the sites there are."""
        ...

    def units(self, split: str | None = None) -> list[int]:
        """Return the units of a split, or all of them (None), in order."""
        ...

    def mean(self, site: str) -> NDArray[np.float64]:
        """Return the mean activation over training rows, float64 [d]."""
        ...

    def variance(self, site: str) -> NDArray[np.float64]:
        """Return each channel's variance over training rows, float64 [d]."""
        ...
