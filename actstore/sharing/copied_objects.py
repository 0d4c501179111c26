"""Copies objects from one place to another: many at a time, in bounded memory.

Each object is read as a whole, held against its recorded size and digest, and only then
written. What is wrong is named, and nothing of it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from typing import NamedTuple, TypeVar

from blake3 import blake3

from actstore.errors import CorruptError, ObjectError, StorageError
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.machine.byte_room import ByteRoom

# Bytes of objects that are in memory. One object that is larger is copied alone.
MOST_IN_MEMORY = 1 << 30
ZARR_JSON = "zarr.json"
_AHEAD = 4  # objects that wait for a thread, for each thread

Item = TypeVar("Item")
Result = TypeVar("Result")


class CopiedObject(NamedTuple):
    """An object that a copy has.

    Attributes:
        key: Its key, the same in both places.
        size: Its bytes.
        digest: blake3 of its bytes.
        data: What they are, where they are known; None: they are read from the source.
    """

    key: str
    size: int
    digest: str
    data: bytes | None = None


def known(key: str, data: bytes) -> CopiedObject:
    """Return an object whose bytes are known."""
    return CopiedObject(key, len(data), blake3(data).hexdigest(), data)


class CopyProgress(NamedTuple):
    """The progress of a copy.

    Attributes:
        bytes: Bytes of the objects that are there by now.
        n_bytes: Bytes of all of them, as far as is known.
        objects: Objects that are there by now.
        skipped_objects: How many of them were there already.
        skipped_bytes: Bytes of those.
    """

    bytes: int = 0
    n_bytes: int = 0
    objects: int = 0
    skipped_objects: int = 0
    skipped_bytes: int = 0


Report = Callable[[CopyProgress], None]


class ObjectCopier:
    """Copies objects, and counts what it has copied.

    Attributes:
        progress: What is there by now.
    """

    def __init__(
        self,
        source: Storage,
        target: Storage,
        *,
        threads: int,
        n_bytes: int,
        report: Report,
        verify: bool,
    ) -> None:
        """Make what copies from one place to another.

        Args:
            source: Where objects are read.
            target: Where they are written.
            threads: Objects that are copied at a time.
            n_bytes: Bytes of all objects, for `report`.
            report: Called after every object, by one thread at a time.
            verify: Read what is there already, and compare its digest. Without it the
                size tells that an object is whole: it was written by a copy of the same
                store, which had checked it. What `extend` makes anew is always read.
        """
        self._source = source
        self._target = target
        self._threads = threads
        self._report = report
        self._verify = verify
        # One listing, and not a question for each object.
        self._there = {found.key: found.bytes for found in target.objects()}
        self.progress = CopyProgress(n_bytes=n_bytes)
        self._lock = threading.Lock()
        self._room = ByteRoom(MOST_IN_MEMORY)

    def copy(self, objects: Iterable[CopiedObject]) -> None:
        """Copy all objects; when it returns, they are there.

        Raises:
            CorruptError: An object of the source is not what was recorded.
            ObjectError: It is not there.
            StorageError: A place refuses.
        """
        in_flight: set[Future[None]] = set()
        most = _AHEAD * self._threads
        with ThreadPoolExecutor(self._threads, thread_name_prefix="copy") as pool:
            try:
                for one in objects:
                    self._room.take(one.size)
                    in_flight.add(pool.submit(self._copy_and_leave, one))
                    if len(in_flight) >= most:
                        in_flight = _without_done(in_flight)
                while in_flight:
                    in_flight = _without_done(in_flight)
            except BaseException:
                # Nothing new is begun; what is being copied ends.
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _copy_and_leave(self, one: CopiedObject) -> None:
        try:
            is_there = self._is_there(one)
            if not is_there:
                self._target.put(one.key, self._bytes(one))
        finally:
            self._room.give_back(one.size)
        with self._lock:
            done = self.progress
            self.progress = CopyProgress(
                done.bytes + one.size,
                max(done.n_bytes, done.bytes + one.size),
                done.objects + 1,
                done.skipped_objects + is_there,
                done.skipped_bytes + one.size * is_there,
            )
            self._report(self.progress)

    def _is_there(self, one: CopiedObject) -> bool:
        """Return whether an object need not be written."""
        if self._there.get(one.key) != one.size:
            return False
        if not self._verify and not _is_made_anew(one.key):
            return True
        try:
            return self._target.digest(one.key, one.size) == (one.size, one.digest)
        except CorruptError:
            return False

    def _bytes(self, one: CopiedObject) -> bytes:
        """Return an object's bytes, which are those recorded."""
        if one.data is not None:
            return one.data
        where = f"{self._source.url}/{one.key}"
        try:
            data = self._source.read(one.key, one.size)
        except CorruptError:
            raise
        except StorageError:
            raise
        except ObjectError as error:
            raise ObjectError(
                f"{error}; nothing of it was copied: copy from another copy of the"
                " store"
            ) from error
        if (len(data), blake3(data).hexdigest()) != (one.size, one.digest):
            raise CorruptError(
                f"{where}: its bytes are not those recorded; nothing of it was copied:"
                " copy from another copy of the store"
            )
        return data


def _is_made_anew(key: str) -> bool:
    """Return whether `extend` writes other bytes to a key, maybe as many as before."""
    return key in object_keys.CARD or key.endswith(ZARR_JSON)


def _without_done(in_flight: set[Future[None]]) -> set[Future[None]]:
    """Wait until a future is done; return the others, or raise what it has raised."""
    done, left = wait(in_flight, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left


def mapped_ahead(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[Result]:
    """Yield a function's results in order, while it works on the next `ahead` items.

    Unlike `Executor.map` it does not begin with all of them at once.
    """
    waiting: list[Future[Result]] = []
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    while waiting:
        yield waiting.pop(0).result()
