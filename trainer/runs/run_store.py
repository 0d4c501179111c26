"""Finds the store that a run was trained from, and never takes another for it.

A run keeps its store's absolute URL, its content id and, where both are local, the path
to it from the run's own folder (so that a folder with both in it may be moved). What
lies at either place counts only if it is that store, or has grown from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from actstore.errors import NotAStoreError, StoreError
from actstore.format.absolute_url import absolute
from actstore.format.content_id import content_ids
from actstore.format.storage import Storage
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from actstore.store.streamed_store import StreamedStore
from schemas.manifest import StoreManifest
from schemas.records import RunRecord, StoreOrigin
from trainer.errors import RunError
from trainer.runs.run_files import read_json

ORIGIN = "store.json"


class RunStore(NamedTuple):
    """The open store of a run.

    Attributes:
        store: The store.
        note: What the user should know where another store than the run's was given.
    """

    store: Store
    note: str | None


def origin_of(store: StreamedStore, run: str) -> StoreOrigin:
    """Return what the run in the folder `run` is to keep about its store."""
    url = absolute(store.url)
    folder = Storage(run).local
    path = None
    if folder is not None and store.storage.local is not None:
        path = os.path.relpath(url, folder.resolve())
    return StoreOrigin(store=url, store_path=path, content_id=store.manifest.content_id)


def read_origin(storage: Storage) -> StoreOrigin | None:
    """Return what a run has kept about its store.

    None where there is no run, or one of an earlier version that has not ended.
    """
    if storage.exists(ORIGIN):
        return read_json(storage, ORIGIN, StoreOrigin)
    if not storage.exists("sae.json"):
        return None
    record = read_json(storage, "sae.json", RunRecord)
    return StoreOrigin(
        store=record.store, store_path=record.store_path, content_id=record.content_id
    )


def is_store_of(content_id: str, manifest: StoreManifest) -> bool:
    """Return whether a store has that content id, or has grown from one that had it."""
    return content_id in content_ids(manifest)


def store_of(run: str, record: RunRecord, given: str | None = None) -> RunStore:
    """Open the store of a run, or the one that the user wants in its place.

    Args:
        run: The run's folder.
        record: Its record.
        given: The URL of a store to use in place of the run's own.

    Raises:
        RunError: The run's store is not found, or the one that was given does not have
            the run's sites.
    """
    if given is None and not record.store:
        raise RunError(
            f"{run}: it was imported without a store; say which one with --store"
        )
    store = find_store(run, record) if given is None else open_store(given)
    check_fits(record, store)
    is_own = (
        given is None
        or not record.content_id
        or is_store_of(record.content_id, store.manifest)
    )
    if is_own:
        return RunStore(store, None)
    note = (
        f"{run}: --store {given} is another store than the run's; its content id is"
        f" {store.manifest.content_id}, and that is what is used (the run's is"
        f" {record.content_id})"
    )
    return RunStore(store, note)


def find_store(run: str, origin: StoreOrigin | RunRecord) -> Store:
    """Open the store of a run at the first of its possible places where it lies.

    Raises:
        RunError: It lies at none of them; the message says what does.
    """
    looked_at = []
    for url in possible_urls(run, origin):
        try:
            store = open_store(url)
        except NotAStoreError:
            looked_at.append(f"{url}: no store")
            continue
        except StoreError as error:
            looked_at.append(str(error))
            continue
        if is_store_of(origin.content_id, store.manifest):
            return store
        looked_at.append(
            f"{url}: another store, of content id {store.manifest.content_id}"
        )
    raise RunError(
        f"{run}: its store, of content id {origin.content_id}, is not found; looked at"
        f" {'; '.join(looked_at)}. Give --store URL if it lies elsewhere, or to use"
        " another one"
    )


def possible_urls(run: str, origin: StoreOrigin | RunRecord) -> list[str]:
    """Return where a run's store may lie: from the run's folder, then by its URL."""
    # Runs of earlier versions have the URL as it was typed, which may be a path
    # relative to a folder that is no longer known.
    is_typed = "://" not in origin.store and not Path(origin.store).is_absolute()
    relative = origin.store_path or (origin.store if is_typed else None)
    folder = Storage(run).local
    urls = []
    if folder is not None and relative is not None:
        urls.append(os.path.normpath(folder.resolve() / relative))
    urls.append(absolute(origin.store))
    return list(dict.fromkeys(urls))


def check_same(storage: Storage, store: StreamedStore) -> None:
    """Check that the run in `storage`, if there is one, was begun with this store.

    Raises:
        RunError: It was begun with another store; training goes on only with its own.
    """
    origin = read_origin(storage)
    if origin is not None and not is_store_of(origin.content_id, store.manifest):
        raise RunError(
            f"{storage.url}: this run is of the store of content id {origin.content_id}"
            f" ({origin.store}), but {store.url} is of {store.manifest.content_id};"
            " give the run's own as --store, or choose another --out"
        )


def check_fits(record: RunRecord, store: StreamedStore) -> None:
    """Check that a store has the sites of an SAE, at the SAE's widths.

    Raises:
        RunError: A site is missing, or is of another width.
    """
    all_sites = (*record.sites, *record.targets)
    missing = [site for site in all_sites if site not in store.sites]
    if missing:
        raise RunError(
            f"{store.url}: it has no site {', '.join(missing)} of this SAE; use the"
            " store it is from"
        )
    # A site that is both an input and a target is held against the input's width.
    wanted = dict.fromkeys(record.targets, record.d_out or record.d)
    wanted |= dict.fromkeys(record.sites, record.d)
    for site, d in wanted.items():
        width = store.site(site).d
        if width != d:
            raise RunError(
                f"{store.url}: its site {site} is of d {width}, this SAE of {d}; use"
                " the store it is from"
            )
