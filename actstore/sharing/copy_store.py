"""Copies a store between any two places, as a whole or in part.

    copy.json  ->  objects, many at a time  ->  manifest.json  ->  copy.json goes

`copy.json` says which store is copied, and is written only where nothing lies; the
manifest comes last. So a copy that was killed is not taken for a store, nothing of two
stores is mixed, and the same call goes on. Two at once write the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.catalog.catalog import Catalog
from actstore.catalog.name_hint import hinting
from actstore.catalog.names import is_name
from actstore.catalog.published_place import checked_place
from actstore.errors import SpecError
from actstore.format import object_keys, zarr_metadata
from actstore.format.manifest import parse_manifest, read_manifest
from actstore.format.object_sizes import MANIFEST_JSON
from actstore.format.storage import Storage
from actstore.harvesting.finish_store import finish_generation
from actstore.sharing.copied_objects import (
    CopiedObject,
    CopyProgress,
    ObjectCopier,
    Report,
    known,
)
from actstore.sharing.copy_claim import Claim
from actstore.sharing.copy_run import check_no_part, copy_run, is_run
from actstore.sharing.hub_storage import place
from actstore.sharing.subset import SubsetObjects, subset_plan
from actstore.sharing.whole_copy import whole_objects
from actstore.store.store import Store
from schemas.harvest import Plan

THREADS = 16


class Copied(NamedTuple):
    """The result of a copy.

    Attributes:
        url: Where the copy lies.
        content_id: That of the copy, which is the source's unless it is a part of it;
            None for a run.
        was_there: The copy was finished before, and nothing was looked at.
        objects: Objects of the copy that were looked at.
        bytes: Bytes of these.
        skipped_objects: How many of them were there already.
        skipped_bytes: Bytes of those.
    """

    url: str
    content_id: str | None
    was_there: bool
    objects: int
    bytes: int
    skipped_objects: int
    skipped_bytes: int


@checked(
    src=arguments.folder,
    dst=arguments.folder,
    sites=optional(arguments.names),
    units=optional(arguments.text_such_as("0:100,150")),
    verify=arguments.flag,
    threads=arguments.count,
    src_options=optional(arguments.mapping),
    dst_options=optional(arguments.mapping),
    progress=optional(arguments.callback),
)
def copy(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    sites: str | Sequence[str] | None = None,
    units: str | None = None,
    verify: bool = False,
    threads: int = THREADS,
    src_options: Mapping[str, Any] | None = None,
    dst_options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Copied:
    """Copy a store, or a run, from one place to another.

    Every object is held against its recorded digest before it is written; one that is
    not what was recorded ends the copy, and nothing of it is written. The same call
    goes on with a copy that was interrupted. What is there already is not copied again.

    Args:
        src: A finished store, or a run: a folder, any fsspec URL, or its name in a
            catalog.
        dst: Where the copy shall lie: a place with nothing in it, with the same store
            (or what it was before `extend`), or with a part of its copy.
        sites: Names or patterns of the sites to copy; None: all.
        units: Units to copy, such as `0:100,150`; None: all. Units keep their numbers,
            and so do rows and sequences.
        verify: Also read what is there already, and write anew what is wrong.
        threads: Objects that are copied at a time.
        src_options: For the file system of `src`, such as credentials.
        dst_options: For the file system of `dst`.
        progress: Called after every object, by one thread at a time.

    Returns:
        What the copy has, and how much of it was there already.

    Raises:
        NotAStoreError, UnfinishedError: There is neither a finished store nor a run.
        SiteError, SpecError: No such sites, or units.
        ExistsError: Something else lies at the destination.
        CorruptError: An object of the source is not what was recorded.
        StorageError: A place cannot be reached, or refuses.

    Examples:
        >>> import actstore
        >>> copied = actstore.copy("stores/small", "copy")
        >>> copied.content_id == actstore.open("stores/small").manifest.content_id
        True
        >>> copied = actstore.copy("stores/small", "part", sites="blocks.0.*")
        >>> actstore.open("part").sites
        ('blocks.0.hook_mlp_out',)
    """
    options = dict(src_options or {})
    if is_name(str(src)):
        src = checked_place(str(src), Catalog(None, options), options)
    source = place(str(src), options)
    target = place(str(dst), dst_options)
    report = progress or _silent
    if is_run(source):
        check_no_part(source, sites, units, verify=verify)
        _check_not_inside(source, target)
        done = copy_run(source, target, threads, report)
        return _result(target, None, done, was_there=False)
    with hinting(str(src)):
        store, data = _opened(source)
    _check_not_inside(source, target)
    patterns = (sites,) if isinstance(sites, str) else sites
    plan = subset_plan(store, None if patterns is None else tuple(patterns), units)
    claim = Claim(target, store.manifest, plan)
    is_finished = claim.begin()
    copier = _Copy(store, claim, threads, report, verify=verify)
    to_copy = verify or not is_finished
    if to_copy:
        copier.copy(plan, data)
    claim.end()
    return copier.result(was_there=not to_copy)


class _Copy:
    """One copy: what is copied, to where, and how."""

    def __init__(
        self,
        store: Store,
        claim: Claim,
        threads: int,
        report: Report,
        *,
        verify: bool,
    ) -> None:
        self._store = store
        self._claim = claim
        self._target = claim.target
        self._threads = threads
        self._report = report
        self._verify = verify
        self._progress = CopyProgress()

    def copy(self, plan: Plan | None, manifest: bytes) -> None:
        """Copy everything; the manifest comes last.

        Args:
            plan: Of a part of the store; None: all of it is copied.
            manifest: The bytes of the store's own.
        """
        if plan is None:
            self._copy_whole(manifest)
        else:
            self._copy_part(plan)

    def _copy_whole(self, manifest: bytes) -> None:
        store = self._store
        n_files = sum(one.bytes for one in store.manifest.files.values())
        copier = self._copier(store.manifest.n_bytes + n_files)
        copier.copy(whole_objects(store, self._threads))
        self._claim.check()
        self._target.put(object_keys.MANIFEST, manifest)
        self._progress = copier.progress

    def _copy_part(self, plan: Plan) -> None:
        store = self._store
        parts = SubsetObjects(store, plan)
        copier = self._copier(parts.n_bytes())
        copier.copy(chain(_first_files(store, plan), parts.objects(self._threads)))
        finish_generation(self._target, plan)
        self._progress = copier.progress

    def _copier(self, n_bytes: int) -> ObjectCopier:
        return ObjectCopier(
            self._store.storage,
            self._target,
            threads=self._threads,
            n_bytes=n_bytes,
            report=self._report,
            verify=self._verify,
        )

    def result(self, *, was_there: bool) -> Copied:
        """Return what came of the copy."""
        manifest = read_manifest(self._target)
        return _result(
            self._target, manifest.content_id, self._progress, was_there=was_there
        )


def _first_files(store: Store, plan: Plan) -> Iterator[CopiedObject]:
    """Yield what a part of a store has before its units: as a harvest, when it begins.

    These are plan, metadata and tokenizer.
    """
    yield known(object_keys.plan_key(), plan.to_json().encode())
    for key, data in zarr_metadata.metadata_files(plan).items():
        yield known(key, data)
    for key in store.tokenizer_keys():
        yield known(key, store.file(key))


def _check_not_inside(source: Storage, target: Storage) -> None:
    """Raise SpecError where a copy would lie in the folder that it is a copy of."""
    here, there = (
        str(place.local.resolve()) if place.local is not None else place.origin
        for place in (source, target)
    )
    if f"{there}/".startswith(f"{here}/") and here != there:
        raise SpecError(
            f"{target.url}: it lies inside of what is copied; choose another place"
        )


def _silent(_: CopyProgress) -> None:
    """Tell nobody."""


def _result(
    target: Storage, content_id: str | None, done: CopyProgress, *, was_there: bool
) -> Copied:
    return Copied(
        target.url,
        content_id,
        was_there,
        done.objects,
        done.bytes,
        done.skipped_objects,
        done.skipped_bytes,
    )


def _opened(source: Storage) -> tuple[Store, bytes]:
    """Return the store at a place, and the bytes of its manifest."""
    read_manifest(source)  # says what is there instead, if there is none
    data = source.read(object_keys.MANIFEST, MANIFEST_JSON)
    store = Store(source, parse_manifest(data, source.url))
    store.check()
    return store, data
