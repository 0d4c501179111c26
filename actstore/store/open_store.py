"""Opens a store, finished or still being harvested."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, overload

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.names import is_name
from actstore.errors import SpecError
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from actstore.store.store import Store

if TYPE_CHECKING:
    from actstore.store.followed import FollowedStore


def opened(store: object, function: str) -> Store:
    """Return a store that is open already, or that lies at a path or URL.

    Args:
        store: The store, a folder or a URL.
        function: The function that it was given to, for errors.

    Raises:
        SpecError: It is neither.
    """
    if isinstance(store, Store):
        return store
    if isinstance(store, (str, os.PathLike)):
        return open(store)
    raise SpecError(
        f"{function}: store: wanted a Store, a path or a URL, got"
        f" {type(store).__name__}"
    )


@overload
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: Literal[False] = False,
) -> Store: ...


@overload
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: Literal[True],
) -> FollowedStore: ...


@overload
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: bool,
) -> Store | FollowedStore: ...


@checked(
    url=arguments.folder, options=optional(arguments.mapping), follow=arguments.flag
)
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: bool = False,
) -> Store | FollowedStore:
    """Open a finished store.

    Args:
        url: A folder, any URL that fsspec knows, or a name in a catalog
            (`catalog:gpt2-tinystories`, see `docs/guides/sharing.md`).
        options: For the file system, such as credentials.
        follow: Open a store that is still being harvested. This waits until its first
            group of units is committed; it can then be streamed with
            `StreamSpec(follow=True)` (see `store/followed.py`).

    Raises:
        NotAStoreError: There is no store.
        UnfinishedError: The harvest has not ended.
        FormatVersionError: A newer actstore has written it.
        CorruptError: Its manifest, or what it counts, cannot be.
        CatalogError: The name leads to nothing, or to another store than the one that
            was published.

    Examples:
        >>> import actstore
        >>> spec = {
        ...     "model": "builtin:mini",
        ...     "corpus": "builtin:stdlib",
        ...     "sites": "blocks.0.hook_mlp_out",
        ...     "tokens": 1024,
        ... }
        >>> _ = actstore.harvest(spec, "activations")
        >>> store = actstore.open("activations")
        >>> store.read("blocks.0.hook_mlp_out").shape
        (1024, 16)
        >>> batch = next(store.stream(actstore.StreamSpec(batch=256)))
        >>> batch.x.shape
        torch.Size([256, 16])
    """
    if is_name(str(url)):
        url = published_url(str(url), options)
    if follow:
        # A finished store needs none of the modules that this one loads.
        from actstore.store.followed import open_followed

        return open_followed(url, options)
    storage = Storage(str(url), options)
    # What is written last is read first: with a manifest, everything else is there.
    store = Store(storage, read_manifest(storage))
    store.check()
    return store


def published_url(name: str, options: dict[str, Any] | None = None) -> str:
    """Return where the store of a catalog's name lies, if it is the one published.

    Raises:
        CatalogError: The name leads to nothing, or to another store.
    """
    # Only a name needs the catalog's modules.
    from actstore.catalog.catalog import Catalog
    from actstore.catalog.published_store import checked_url

    return checked_url(name, Catalog(None, options), options)
