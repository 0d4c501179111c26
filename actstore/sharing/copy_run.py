"""Copies a run of `trainer`: its folder, whose record comes last.

A run's files have no recorded digests, so each is read again once it is written. A
folder without `sae.json` is no run: what was interrupted is not taken for one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from blake3 import blake3

from actstore.catalog.published_run import EVALUATION, RUN
from actstore.errors import ExistsError, ObjectError, SpecError, StorageError
from actstore.format import object_keys
from actstore.format.local_writes import is_temporary
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.machine.byte_room import ByteRoom
from actstore.sharing import copied_objects
from actstore.sharing.copied_objects import CopyProgress, Report, mapped_ahead


def is_run(source: Storage) -> bool:
    """Return whether a run lies at a place, and no store."""
    return source.exists(RUN) and not source.exists(object_keys.MANIFEST)


def check_no_part(
    source: Storage,
    sites: object,
    units: object,
    *,
    verify: bool,
) -> None:
    """Raise SpecError for what only a store's copy can be asked."""
    given = {"--sites": sites is not None, "--units": units is not None}
    named = [name for name, is_given in given.items() if is_given]
    if named:
        raise SpecError(
            f"{source.url}: it is a run, which is copied as a whole; leave out"
            f" {', '.join(named)}"
        )
    if verify:
        raise SpecError(
            f"{source.url}: it is a run, whose files are always read again; leave out"
            " --verify"
        )


def copy_run(
    source: Storage, target: Storage, threads: int, report: Report
) -> CopyProgress:
    """Copy a run's files.

    Raises:
        ExistsError: Another run, or something else, lies at the destination.
        StorageError: A file is not what was written.
    """
    sizes = {
        found.key: found.bytes
        for found in source.objects()
        if not is_temporary(found.key)
    }
    keys = [key for key in sizes if key != RUN]
    _check_target(source, target, {*keys, RUN})
    done = CopyProgress(n_bytes=sum(sizes[key] for key in (*keys, RUN)))

    room = ByteRoom(copied_objects.MOST_IN_MEMORY)
    is_finished = target.exists(RUN)

    def copied(key: str) -> tuple[int, bool]:
        size = sizes[key]
        room.take(size)
        try:
            return _copied(source, target, key, size, is_finished=is_finished)
        finally:
            room.give_back(size)

    with ThreadPoolExecutor(threads, thread_name_prefix="copy") as pool:
        # The record is copied once all else is there.
        files = mapped_ahead(pool, copied, keys, threads)
        for n_bytes, was_there in chain(files, map(copied, [RUN])):
            done = CopyProgress(
                done.bytes + n_bytes,
                max(done.n_bytes, done.bytes + n_bytes),
                done.objects + 1,
                done.skipped_objects + was_there,
                done.skipped_bytes + n_bytes * was_there,
            )
            report(done)
    return done


def _copied(
    source: Storage, target: Storage, key: str, size: int, *, is_finished: bool
) -> tuple[int, bool]:
    """Copy a file of at most `size` bytes; return these, and whether it was there.

    is_finished: whether the whole run was there.
    """
    data = source.read(key, size)
    if _has(target, key, data):
        return len(data), True
    # Weights never change once there is a record: what differs was damaged. An
    # evaluation is written anew each time.
    if is_finished and key == EVALUATION and target.exists(key):
        raise ExistsError(
            f"{target.url}/{key}: it is another than at {source.url}, and may be newer;"
            " remove it there, or copy to another place"
        )
    target.put(key, data)
    if not _has(target, key, data):
        raise StorageError(f"{target.url}/{key}: not what was written; copy again")
    return len(data), False


def _check_target(source: Storage, target: Storage, wanted: set[str]) -> None:
    """Raise ExistsError where something lies that is not of this run."""
    others = [key for key in target.list() if key not in wanted]
    if others:
        raise ExistsError(
            f"{target.url}: it is not empty ({others[0]} is no file of the run); choose"
            " another place"
        )
    record = source.read(RUN, SMALL_JSON)
    if target.exists(RUN) and not _has(target, RUN, record):
        raise ExistsError(f"{target.url}: another run is there; choose another place")


def _has(target: Storage, key: str, data: bytes) -> bool:
    """Return whether an object is there with these bytes."""
    try:
        return target.digest(key, len(data)) == (len(data), blake3(data).hexdigest())
    except ObjectError:
        return False
