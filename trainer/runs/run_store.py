"""The store of a run: written down so that it is found again from anywhere, and never
taken for another one.

A run holds its store's absolute URL, its path from the run's own folder where both are
local (so that a folder of both may be moved), and its content id. What lies at either
place counts only if it is that store, or has grown from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from actstore.errors import NotAStoreError, StoreError
from actstore.format.content_id import content_ids
from actstore.format.storage import Storage
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from schemas.manifest import StoreManifest
from schemas.records import RunRecord, StoreOrigin
from trainer.errors import RunError
from trainer.runs.run_files import read_json

ORIGIN = "store.json"


class RunStore(NamedTuple):
    """A run's store, open. note: what is to be said where --store names another one
    than the run is of.
    """

    store: Store
    note: str | None


def absolute(url: str) -> str:
    """A URL that means the same from every folder."""
    local = Storage(url).local
    if local is None:
        return url
    if local.name in {"", ".."}:
        return str(local.resolve())
    # where it is a link itself, it may be moved with the run
    return str(local.parent.resolve() / local.name)


def origin_of(store: Store, run: str) -> StoreOrigin:
    """What a run in the folder `run` holds of its store."""
    url, folder = absolute(store.url), Storage(run).local
    path = (
        None
        if folder is None or store.storage.local is None
        else os.path.relpath(url, folder.resolve())
    )
    return StoreOrigin(store=url, store_path=path, content_id=store.manifest.content_id)


def read_origin(storage: Storage) -> StoreOrigin | None:
    """What a run holds of its store; None for a run of an earlier version that has not
    ended, and where no run is.
    """
    if storage.exists(ORIGIN):
        return read_json(storage, ORIGIN, StoreOrigin)
    if not storage.exists("sae.json"):
        return None
    record = read_json(storage, "sae.json", RunRecord)
    return StoreOrigin(
        store=record.store, store_path=record.store_path, content_id=record.content_id
    )


def is_of(content_id: str, manifest: StoreManifest) -> bool:
    """Whether a store is the one of that content id, or has grown from it."""
    return content_id in content_ids(manifest)


def store_of(run: str, record: RunRecord, given: str | None = None) -> RunStore:
    """The store of the run in the folder `run`, or the one that the user has `given` in
    its place.

    Raises RunError where none of the places has the run's store, or the one given has
    other sites.
    """
    if given is None and not record.store:
        raise RunError(
            f"{run}: it was imported without a store; say which one with --store"
        )
    store = found(run, record) if given is None else open_store(given)
    check_fits(record, store)
    there = store.manifest.content_id
    if (
        given is None
        or not record.content_id
        or is_of(record.content_id, store.manifest)
    ):
        return RunStore(store, None)
    return RunStore(
        store,
        f"{run}: --store {given} is another store than the run's; its content id is"
        f" {there}, and that is what is used (the run's is {record.content_id})",
    )


def found(run: str, origin: StoreOrigin | RunRecord) -> Store:
    """The store of that origin: the first of its places where it lies. Raises RunError
    with what is at each.
    """
    looked = []
    for url in places(run, origin):
        try:
            store = open_store(url)
        except NotAStoreError:
            looked.append(f"{url}: no store")
            continue
        except StoreError as error:
            looked.append(str(error))
            continue
        if is_of(origin.content_id, store.manifest):
            return store
        looked.append(
            f"{url}: another store, of content id {store.manifest.content_id}"
        )
    raise RunError(
        f"{run}: its store, of content id {origin.content_id}, is not found; looked at"
        f" {'; '.join(looked)}. Give --store URL if it lies elsewhere, or to use"
        " another one"
    )


def places(run: str, origin: StoreOrigin | RunRecord) -> list[str]:
    """Where a run's store may lie: by its path from the run's folder, then by its URL.
    Runs of earlier versions have the URL as it was typed, which may be a path from
    anywhere.
    """
    folder, url = Storage(run).local, absolute(origin.store)
    typed = (
        None
        if "://" in origin.store or Path(origin.store).is_absolute()
        else origin.store
    )
    path = origin.store_path or typed
    near = (
        []
        if folder is None or path is None
        else [os.path.normpath(folder.resolve() / path)]
    )
    return list(dict.fromkeys([*near, url]))


def check_same(storage: Storage, store: Store) -> None:
    """Raises RunError where the run that lies in `storage` is of another store:
    training goes on with its own only.
    """
    origin = read_origin(storage)
    if origin is not None and not is_of(origin.content_id, store.manifest):
        raise RunError(
            f"{storage.url}: this run is of the store of content id {origin.content_id}"
            f" ({origin.store}), but {store.url} is of {store.manifest.content_id};"
            " give the run's own as --store, or choose another --out"
        )


def check_fits(record: RunRecord, store: Store) -> None:
    """Raises RunError where a store has not the sites that an SAE is of, or has them at
    another width.
    """
    missing = [
        site for site in (*record.sites, *record.targets) if site not in store.sites
    ]
    if missing:
        raise RunError(
            f"{store.url}: it has no site {', '.join(missing)} of this SAE; use the"
            " store it is from"
        )
    wanted = {
        **dict.fromkeys(record.targets, record.d_out or record.d),
        **dict.fromkeys(record.sites, record.d),
    }
    for site, d in wanted.items():
        if store.site(site).d != d:
            raise RunError(
                f"{store.url}: its site {site} is of d {store.site(site).d}, this SAE"
                f" of {d}; use the store it is from"
            )
