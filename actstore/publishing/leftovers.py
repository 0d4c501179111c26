"""Finds and removes what was begun and left: stores, uploads and temporary files.

Nothing is removed that was written to within a day. A finished store's objects stay,
and so does every object that is not known to be a store's.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import ActstoreError, NotAStoreError, SpecError, StoreError
from actstore.format import object_keys
from actstore.format.local_writes import TEMPORARY
from actstore.format.storage import ListedObject, PendingUpload, Storage
from actstore.publishing.remove_objects import remove_objects
from actstore.publishing.store_keys import (
    REMOVAL,
    CopyKeys,
    StoreKeys,
    is_mark,
    keys_of,
)
from actstore.publishing.usage import root_of, store_roots
from actstore.store.open_store import store_url

DAY_S = 86_400.0
LEAST_DAYS = 1.0
# What a write on a local disk and `actstore doctor` make, and remove unless killed.
_TEMPORARY = re.compile(r"(.*/)?\.(tmp|doctor)-[0-9a-f]{32}(/time)?")


class Leftover(NamedTuple):
    """Something that was begun and left.

    Attributes:
        url: The store's folder, the temporary file, or the object that was uploaded.
        what: `harvest`, `copy`, `removal`, `temporary file`, `upload` (of an object,
            in parts), or `uploads` where a place does not list those.
        objects: How many objects it has.
        bytes: Bytes of these.
        days: Days since anything was written there.
        removable: Whether that is long enough ago, by what was asked.
        note: What else is to be known; None for nothing.
    """

    url: str
    what: str
    objects: int
    bytes: int
    days: float | None
    removable: bool
    note: str | None = None


class _Found(NamedTuple):
    """A leftover, and its objects."""

    leftover: Leftover
    storage: Storage
    keys: list[str]
    upload: PendingUpload | None = None


@checked(
    url=arguments.folder,
    older_than=arguments.positive,
    delete=arguments.flag,
    options=optional(arguments.mapping),
)
def leftovers(
    url: str | os.PathLike[str],
    *,
    older_than: float = LEAST_DAYS,
    delete: bool = False,
    options: dict[str, Any] | None = None,
) -> list[Leftover]:
    """Return what was begun at a URL or below it and left, and remove it if asked to.

    These are harvests, imports, copies and removals that have not ended, temporary
    files, and the parts of large objects whose upload has not ended, which object
    stores keep, charge for and do not list. A harvest that was stopped can be gone on
    with until then.

    Args:
        url: A store or its name in the catalog, or a folder with stores anywhere below
            it.
        older_than: Days since anything was written there; at least 1.
        delete: Remove what is old enough.
        options: For the file system, such as credentials.

    Raises:
        SpecError: `older_than` is less than a day.
        NotAStoreError: There is nothing at the URL.
        StorageError: The place cannot be reached.

    Examples:
        >>> import actstore
        >>> actstore.leftovers("stores")
        []
    """
    if older_than < LEAST_DAYS:
        raise SpecError(
            f"--older-than {older_than:g}: wanted at least {LEAST_DAYS:g} day; what is"
            " younger may be going on"
        )
    storage = Storage(store_url(str(url), options), options)
    found = storage.objects()
    uploads, why = _uploads(storage)
    if not found and not uploads:
        raise NotAStoreError(f"{url}: there is nothing; check the URL")
    now = time.time()
    if delete:
        # The ages are by the place's clock: if this machine's is ahead, all looks old.
        now = min(now, _time_there(storage))
    results = []
    left = _find(storage, found, now, older_than)
    left += _left_uploads(storage, found, uploads, now, older_than)
    for one in left:
        if delete and one.leftover.removable:
            one = _removed(one, now, older_than)  # noqa: PLW2901 (it may have changed)
        results.append(one.leftover)
    if why is not None:
        note = f"they cannot be listed: {why}"
        results.append(Leftover(storage.url, "uploads", 0, 0, None, False, note))
    return results


def _uploads(storage: Storage) -> tuple[list[PendingUpload], str | None]:
    """Return the uploads that have not ended, or why they cannot be listed.

    Not all who may read a place may list these, and not all servers do.
    """
    try:
        return storage.uploads(), None
    except StoreError as error:
        return [], str(error)


def _left_uploads(
    storage: Storage,
    found: list[ListedObject],
    uploads: list[PendingUpload],
    now: float,
    days: float,
) -> list[_Found]:
    """Return uploads that were begun; those of a store's objects can go."""
    roots = store_roots(found)
    keys_at: dict[str, StoreKeys | CopyKeys | None] = {}
    results = []
    for upload in uploads:
        root = root_of(upload.key, roots)
        is_ours = False
        if root is not None:
            if root not in keys_at:
                keys_at[root] = _keys_there(_place(storage, root))
            is_ours = _inside(upload.key, root) in (keys_at[root] or ())
        age = (now - upload.modified) / DAY_S
        leftover = Leftover(
            url=f"{storage.url}/{upload.key}",
            what="upload",
            objects=1,
            bytes=upload.bytes,
            days=age,
            removable=is_ours and _is_old(age, days),
            note=None if is_ours else "it is no object of a store, and stays",
        )
        results.append(_Found(leftover, storage, [], upload))
    return results


def _keys_there(storage: Storage) -> StoreKeys | CopyKeys | None:
    """Return the keys of the store in a folder, finished or not; None: there is none.

    A file there may only be called as one of a store.
    """
    try:
        return keys_of(storage)[0]
    except ActstoreError:
        return CopyKeys() if is_mark(storage, object_keys.COPY) else None


def _find(
    storage: Storage, found: list[ListedObject], now: float, days: float
) -> list[_Found]:
    """Return what was left, stores first."""
    roots = store_roots(found)
    of_root: dict[str, list[ListedObject]] = {root: [] for root in sorted(roots)}
    results = []
    temporary = []
    for one in found:
        root = root_of(one.key, roots)
        if _TEMPORARY.fullmatch(one.key):
            temporary.append(one)
        elif root is not None:
            of_root[root].append(one)
    for root, objects in of_root.items():
        inside = [one._replace(key=_inside(one.key, root)) for one in objects]
        left = _unfinished(_place(storage, root), inside, now, days)
        if left is not None:
            results.append(left)
    for one in temporary:
        age = _days(one, now)
        leftover = Leftover(
            url=f"{storage.url}/{one.key}",
            what="temporary file",
            objects=1,
            bytes=one.bytes,
            days=age,
            removable=_is_old(age, days),
        )
        results.append(_Found(leftover, storage, [one.key]))
    return results


def _place(storage: Storage, root: str) -> Storage:
    """Return the folder of a store; "" is the storage itself."""
    return storage.child(root) if root else storage


def _inside(key: str, root: str) -> str:
    """Return a key relative to the store's folder that it lies in."""
    return key.removeprefix(f"{root}/") if root else key


def _unfinished(
    storage: Storage, found: list[ListedObject], now: float, days: float
) -> _Found | None:
    """Return a store that was begun and left; None for a finished one."""
    there = {one.key for one in found}
    if object_keys.MANIFEST in there:
        return None
    what = "harvest"
    for mark, word in ((object_keys.COPY, "copy"), (REMOVAL, "removal")):
        if mark in there and is_mark(storage, mark):
            what = word
    if what == "harvest" and object_keys.plan_key() not in there:
        return None  # a file that only is called so
    note = None
    keys: StoreKeys | CopyKeys | None = None
    if object_keys.plan_key() not in there:
        # Without a plan only a copy's form tells what is its own.
        keys = CopyKeys() if what == "copy" else StoreKeys(None)
    else:
        try:
            keys, manifest = keys_of(storage)
        except ActstoreError as error:
            note = f"it is left: {error}"
        else:
            if manifest is not None:  # it has been finished since it was listed
                return None
    known = [one for one in found if keys is not None and one.key in keys]
    n_others = len(found) - len(known)
    if note is None and n_others:
        note = f"{n_others} other files in it stay"
    # Whatever was written last counts, be it a store's or not.
    ages = [_days(one, now) for one in found]
    age = None if None in ages else min(age for age in ages if age is not None)
    leftover = Leftover(
        url=storage.url,
        what=what,
        objects=len(known),
        bytes=sum(one.bytes for one in known),
        days=age,
        removable=_is_old(age, days) and keys is not None,
        note=note,
    )
    return _Found(leftover, storage, [one.key for one in known])


def _removed(one: _Found, now: float, days: float) -> _Found:
    """Remove what was left, unless it was written to since it was listed."""
    if one.upload is not None:
        one.storage.abort(one.upload)
        return one
    if one.leftover.what == "temporary file":
        one.storage.delete(one.keys[0])
        return one
    again = _unfinished(one.storage, one.storage.objects(), now, days)
    if again is None or not again.leftover.removable:
        leftover = one.leftover._replace(
            removable=False, note="it was written to meanwhile, and stays"
        )
        return one._replace(leftover=leftover)
    remove_objects(again.storage, again.keys, lambda _: None)
    return again


def _days(one: ListedObject, now: float) -> float | None:
    """Return how many days ago an object was written; None: it is not known."""
    return None if one.modified is None else (now - one.modified) / DAY_S


def _is_old(age: float | None, days: float) -> bool:
    return age is not None and age >= days


def _time_there(storage: Storage) -> float:
    """Return the time by a place's own clock: that of an object written now.

    Where it does not tell (or its listing lags) nothing is old, and nothing removed.
    """
    if storage.local is not None:
        return time.time()
    folder = f"{TEMPORARY}{uuid.uuid4().hex}"
    key = f"{folder}/time"
    storage.put(key, b"actstore gc")
    try:
        times = [one.modified for one in storage.objects(folder)]
    finally:
        storage.delete(key)
    known = [modified for modified in times if modified is not None]
    return known[0] if known else 0.0
