"""Puts the objects of units, over an object store many at a time.

There a PUT waits for the network, so more are under way than there are threads that
encode; the bytes that wait are bounded. On a local disk an object is written by the
thread that has made it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from actstore.format.object_records import object_record
from actstore.format.storage import Buffers, Storage
from actstore.machine.byte_room import ByteRoom
from schemas.manifest import ObjectRecord

# PUTs under way at a time.
UPLOADS = 16
# Objects that are made and not yet written may take this part of the memory that a
# harvest has for its units: 128 MiB of the default 4 GiB. One connection to an object
# store moves some 85 MB/s, so that wide shards need several under way at a time.
UPLOADS_SHARE = 32


class Uploads:
    """The objects that are being written to a storage."""

    def __init__(self, storage: Storage, room: int) -> None:
        """Make it; `room` bytes may be on their way at a time, or one object."""
        self._storage = storage
        self._room = ByteRoom(room)
        self._pool: ThreadPoolExecutor | None = None
        if storage.local is None:
            self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")

    def put(self, key: str, data: Buffers) -> Future[ObjectRecord]:
        """Begin to write an object; its record comes once it is there.

        Waits while too many bytes are on their way.
        """
        record = object_record(data)
        if self._pool is None:
            self._storage.put(key, data)
            written: Future[ObjectRecord] = Future()
            written.set_result(record)
            return written
        self._room.take(record.bytes)
        try:
            return self._pool.submit(self._put, key, data, record)
        except BaseException:
            self._room.give_back(record.bytes)
            raise

    def close(self) -> None:
        """End the threads, once what was begun is written."""
        if self._pool is not None:
            self._pool.shutdown()

    def _put(self, key: str, data: Buffers, record: ObjectRecord) -> ObjectRecord:
        try:
            self._storage.put(key, data)
        finally:
            self._room.give_back(record.bytes)
        return record
