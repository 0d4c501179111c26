"""Opens a store, finished or still being harvested."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, overload

from actstore import arguments
from actstore.arguments import checked, optional, path_or_none
from actstore.catalog.names import is_name
from actstore.errors import NotAStoreError, SpecError
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from actstore.machine import command_values
from actstore.store.store import Store

if TYPE_CHECKING:
    from actstore.store.followed import FollowedStore
    from actstore.store.stored_objects import StoredObjects


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


def opened_without_cache(store: object, function: str) -> Store:
    """Return a store as `opened` does, which reads what lies in the store itself."""
    found = opened(store, function)
    return Store(found.storage, found.manifest)


@overload
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: Literal[False] = False,
    cache: str | os.PathLike[str] | None = None,
    cache_size: int | str | None = None,
) -> Store: ...


@overload
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: Literal[True],
    cache: str | os.PathLike[str] | None = None,
    cache_size: int | str | None = None,
) -> FollowedStore: ...


@overload
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: bool,
    cache: str | os.PathLike[str] | None = None,
    cache_size: int | str | None = None,
) -> Store | FollowedStore: ...


@checked(
    url=arguments.folder,
    options=optional(arguments.mapping),
    follow=arguments.flag,
    cache=optional(arguments.folder),
    cache_size=optional(arguments.size),
)
def open(  # noqa: A001
    url: str | os.PathLike[str],
    options: dict[str, Any] | None = None,
    *,
    follow: bool = False,
    cache: str | os.PathLike[str] | None = None,
    cache_size: int | str | None = None,
) -> Store | FollowedStore:
    """Open a finished store.

    Args:
        url: A folder, any URL that fsspec knows, or a name in a catalog
            (`catalog:gpt2-tinystories`, see `docs/guides/sharing.md`).
        options: For the file system, such as credentials.
        follow: Open a store that is still being harvested. This waits until its first
            group of units is committed; it can then be streamed with
            `StreamSpec(follow=True)` (see `store/followed.py`).
        cache: A folder of this machine that keeps what is read of a store that lies
            elsewhere, such as in an object store; None: the folder that the environment
            variable ACTSTORE_CACHE names, if it is set.
        cache_size: The bytes that the folder may take, such as "200GB"; the size given
            last counts for all who use it. None: ACTSTORE_CACHE_SIZE; or as before, and
            half of what is free on the disk for a new cache.

    Raises:
        SpecError: The store lies on this machine, so that a cache would do nothing; or
            the folder holds something else.
        NotAStoreError: There is no store.
        UnfinishedError: The harvest has not ended.
        FormatVersionError: A newer actstore has written it.
        CorruptError: Its manifest, or what it counts, cannot be.
        CatalogError: The name leads to nothing, or to another store than the one that
            was published.

    Examples:
        >>> import actstore
        >>> store = actstore.open("stores/small")
        >>> store.read("blocks.0.hook_mlp_out").shape
        (1024, 16)
        >>> batch = next(store.stream(actstore.StreamSpec(batch=256)))
        >>> batch.x.shape
        torch.Size([256, 16])
    """
    url = store_url(str(url), options)
    size: Any = cache_size  # bytes, since the argument was checked
    if follow:
        # A finished store needs none of the modules that this one loads.
        from actstore.store.followed import open_followed

        followed = open_followed(url, options)
        _read_by_cache(followed.objects, path_or_none(cache), size)
        return followed
    storage = Storage(url, options)
    try:
        # What is written last is read first: with it, everything else is there.
        manifest = read_manifest(storage)
    except NotAStoreError:
        # Only a name that lacks its `catalog:` needs the catalog's modules.
        from actstore.catalog.name_hint import hinting

        with hinting(url):
            raise
    store = Store(storage, manifest)
    _read_by_cache(store, path_or_none(cache), size)
    store.check()
    return store


def _read_by_cache(
    objects: StoredObjects, folder: str | None, size: int | None
) -> None:
    """Let a store's bytes come by way of a cache, where there is to be one."""
    is_wanted = folder or size or os.environ.get(command_values.CACHE)
    if not is_wanted:
        return
    # Opening a local store need not load SQLite.
    from actstore.store.cached_shards import CachedShards, cache_for

    cache = cache_for(objects.storage, folder, size)
    if cache is not None:
        objects.shards = CachedShards(objects, cache)


def store_url(url: str, options: dict[str, Any] | None = None) -> str:
    """Return where a store lies, which may be given by its name in a catalog.

    Args:
        url: A folder, a URL or a name.
        options: For the file system, such as credentials.

    Raises:
        CatalogError: The name leads to nothing, or to another store than the one that
            was published.
    """
    if not is_name(url):
        return url
    # Only a name needs the catalog's modules.
    from actstore.catalog.catalog import Catalog
    from actstore.catalog.published_store import checked_url

    return checked_url(url, Catalog(None, options), options)
