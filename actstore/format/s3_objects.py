"""Objects in a bucket of S3: s3fs lists and deletes, obstore moves the bulk bytes.

Every request is tried again by `retries.py`, and by nothing below it (but for parts of
a multipart upload): so what was tried again is counted, and bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from actstore.errors import StorageError, StoreError
from actstore.format.local_files import ListedObject, PendingUpload
from actstore.format.remote_objects import FsspecObjects, Part, TooLarge
from actstore.format.retries import Retries
from actstore.format.s3_client import S3Client, forked, moves_bulk
from actstore.format.s3_failures import Failure, failure_of
from actstore.format.storage_errors import of_s3, without_secrets

Result = TypeVar("Result")

PART_BYTES = 16 << 20  # of a multipart upload, or of a large object that is read
PARTS_AT_ONCE = 4


def part_bytes(n_bytes: int) -> int:
    """Return the size of an upload's parts.

    As few parts as are sent at a time, if they stay below 32 MiB: each is a request,
    and requests are what S3 limits. 128 MiB are four parts of 32 MiB.
    """
    least_parts = -(-n_bytes // PARTS_AT_ONCE)
    return min(max(least_parts, PART_BYTES), 2 * PART_BYTES)


class _NoListing(Exception):  # noqa: N818 (it never leaves `Storage`)
    """A listing was answered by an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.name)
        self.failure = failure


class S3Objects(FsspecObjects):
    """Objects in one bucket."""

    def __init__(self, fs: Any, bucket: str, options: dict[str, Any]) -> None:
        """Make it.

        Args:
            fs: s3fs's file system; it tries nothing again by itself.
            bucket: The bucket's name.
            options: Those that the file system has.
        """
        super().__init__(fs, options)
        self.client = S3Client(fs, bucket)
        self._skip = len(bucket) + 1
        self._retries = Retries(failure_of, self.client.renew)
        self._moves_bulk = moves_bulk(bucket, options)
        self._bucket_is_there = False

    @property
    def server(self) -> str:
        endpoint = self.client.endpoint
        # Buckets of Amazon's have one name in all regions.
        return "" if endpoint.endswith(".amazonaws.com") else endpoint

    @property
    def _by_obstore(self) -> bool:
        return self._moves_bulk and not forked()

    def read(self, path: str, limit: int | None) -> bytes:
        """Return an object's bytes; raises TooLarge."""
        if not self._by_obstore:
            plain = super().read
            return self._again(lambda: plain(path, limit))
        import obstore

        def request() -> bytes | int:
            answer = obstore.get(self.client.reader, self._key(path))
            size = int(answer.meta["size"])
            if limit is not None and size > limit:
                raise TooLarge
            # A large one in parts: a part that fails is not the whole.
            return size if size > 2 * PART_BYTES else answer.bytes().to_bytes()

        read = self._again(request)
        if isinstance(read, bytes):
            return read
        starts = range(0, read, PART_BYTES)
        wanted = [(start, min(PART_BYTES, read - start)) for start in starts]
        return b"".join(self.ranges(path, wanted))

    def ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Part]:
        """Return (offset, length) ranges; a negative offset counts from the end.

        They are asked for as they are, none merged with another; ten at a time.
        """
        if not self._by_obstore:
            plain = super().ranges
            return self._again(lambda: plain(path, ranges))
        if len(ranges) > 1 and all(o >= 0 and n > 0 for o, n in ranges):
            try:
                return self._ranges_at_once(path, ranges)
            except Exception as error:
                failure = failure_of(error)
                # One that failed, of many, shall not make all be read again and again.
                if failure is None or failure.kind == "missing":
                    raise
        parts = []
        for offset, n in ranges:
            try:
                parts.append(self._range(path, offset, n))
            except Exception as error:
                failure = failure_of(error)
                if failure is None or failure.status != 416:
                    raise
                parts.append(b"")  # behind the object's end
        return parts

    def _ranges_at_once(
        self, path: str, ranges: Sequence[tuple[int, int]]
    ) -> list[Part]:
        import obstore

        starts = [offset for offset, _ in ranges]
        lengths = [n for _, n in ranges]
        key = self._key(path)
        parts = obstore.get_ranges(
            self.client.reader, key, starts=starts, lengths=lengths, coalesce=0
        )
        return [memoryview(part) for part in parts]

    def _range(self, path: str, offset: int, n: int) -> Part:
        import obstore

        if n == 0:
            return b""
        key = self._key(path)
        if offset >= 0:
            return self._again(
                lambda: memoryview(
                    obstore.get_range(self.client.reader, key, start=offset, length=n)
                )
            )

        def request() -> memoryview:
            answer = obstore.get(
                self.client.reader, key, options={"range": {"suffix": -offset}}
            )
            return memoryview(answer.bytes())[:n]

        return self._again(request)

    def size(self, path: str) -> int:
        if not self._by_obstore:
            plain = super().size
            return self._again(lambda: plain(path))
        return int(self._again(lambda: self._head(path))["size"])

    def exists(self, path: str) -> bool:
        # Not by `isfile`, which takes every error for "no".
        try:
            self._again(
                (lambda: self._head(path))
                if self._by_obstore
                else (lambda: self.fs.info(path))
            )
        except FileNotFoundError as error:
            failure = failure_of(error)
            if failure is not None and failure.kind != "missing":
                raise
            return False
        return True

    def _head(self, path: str) -> Any:
        """Return what obstore says of an object."""
        import obstore

        key = self._key(path)
        try:
            found: Any = obstore.head(self.client.reader, key)
        except Exception as error:
            failure = failure_of(error)
            # The answer to HEAD has no body: GET tells why it was refused, or whether
            # what is missing is the bucket.
            untold = failure is not None and not failure.code and failure.status
            if not untold or (untold == 404 and self._bucket_is_there):
                raise
            if untold in {500, 502, 503, 504}:
                raise
            try:
                found = obstore.get(self.client.reader, key).meta
            except FileNotFoundError as told:
                why = failure_of(told)
                self._bucket_is_there = why is not None and why.kind == "missing"
                raise
        self._bucket_is_there = True
        return found

    def find(self, path: str) -> dict[str, ListedObject]:
        plain = super().find
        return self._listed(lambda: plain(path))

    def folders(self, path: str) -> list[str]:
        plain = super().folders
        return self._listed(lambda: plain(path))

    def is_folder(self, path: str) -> bool:
        return not self.is_empty(path)

    def is_empty(self, path: str) -> bool:
        """Return whether nothing lies under a folder: one key is asked for."""
        bucket, _, prefix = path.partition("/")
        prefix = f"{prefix}/" if prefix else ""
        answer = self._listed(
            lambda: self.fs.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1
            )
        )
        return not answer.get("Contents")

    def _listed(self, request: Callable[[], Result]) -> Result:
        """Return what a listing gives; FileNotFoundError for a folder without any.

        A folder may be missing, and is empty then; not so the bucket, and a server of
        S3 does not answer a listing with "not found".
        """
        try:
            return self._again(request)
        except FileNotFoundError as error:
            failure = failure_of(error)
            if failure is None or failure.status is None:
                raise
            if failure.kind == "missing":
                failure = failure._replace(
                    kind="no", code=failure.code or "status 404 for a listing"
                )
            raise _NoListing(failure) from error

    def put(self, path: str, data: bytes) -> None:
        if not self._by_obstore:
            plain = super().put
            self._again(lambda: plain(path, data))
            return
        import obstore

        key = self._key(path)
        if len(data) <= PART_BYTES:
            self._again(
                lambda: obstore.put(self.client.writer, key, data, use_multipart=False)
            )
            return
        self._again(
            lambda: obstore.put(
                self.client.part_writer,
                key,
                data,
                use_multipart=True,
                chunk_size=part_bytes(len(data)),
                max_concurrency=PARTS_AT_ONCE,
            )
        )

    def create(self, path: str, data: bytes) -> bool:
        """Write an object where there is none; return whether there was none.

        It is one PUT with `If-None-Match: *`, whatever its size: some servers do not
        look at the condition of a multipart upload.
        """
        tries = 0

        def request() -> None:
            nonlocal tries
            tries += 1
            self._create_once(path, data)

        if not self.creates:
            return self._create_alone(path, data)
        try:
            self._again(request)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            # some servers call a condition that they do not know a bad request
            if failure.kind == "no create" or failure.status == 400:
                self.creates = False
                return self._create_alone(path, data)
            if failure.kind != "exists":
                raise
            # Of an earlier try nobody may have heard that it was done.
            return tries > 1 and self.read(path, None) == data
        return True

    def _create_once(self, path: str, data: bytes) -> None:
        if not self._by_obstore:
            self.fs.pipe_file(path, data, mode="create", chunksize=max(len(data), 1))
            return
        import obstore

        key = self._key(path)
        obstore.put(self.client.writer, key, data, mode="create", use_multipart=False)

    def _create_alone(self, path: str, data: bytes) -> bool:
        """Create an object where the server knows no conditions: with one writer."""
        if self.exists(path):
            return False
        self.put(path, data)
        return True

    def delete(self, path: str) -> None:
        plain = super().delete
        self._again(lambda: plain(path))

    def uploads(self, path: str) -> list[PendingUpload]:
        """Return the uploads under a folder that have not ended, by path."""
        bucket, _, prefix = path.partition("/")
        request = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        found = []
        for page in self._pages("list_multipart_uploads", request):
            for one in page.get("Uploads") or []:
                name = {"Key": one["Key"], "UploadId": one["UploadId"]}
                parts = [
                    part
                    for parts in self._pages("list_parts", {"Bucket": bucket, **name})
                    for part in parts.get("Parts") or []
                ]
                times = [one["Initiated"], *(part["LastModified"] for part in parts)]
                found.append(
                    PendingUpload(
                        f"{bucket}/{one['Key']}",
                        one["UploadId"],
                        sum(part["Size"] for part in parts),
                        max(times).timestamp(),
                    )
                )
        return found

    def abort(self, path: str, upload: str) -> None:
        """End an upload, and remove its parts."""
        bucket, _, key = path.partition("/")
        self._again(
            lambda: self.fs.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload
            )
        )

    def _pages(self, operation: str, request: dict[str, Any]) -> Iterator[Any]:
        """Yield the answers to a request that comes in pages."""
        while True:
            asked = dict(request)
            page = self._again(lambda: self.fs.call_s3(operation, **asked))  # noqa: B023
            yield page
            if not page.get("IsTruncated"):
                return
            # Some servers say that there is more, and not where it begins.
            marks = _next_marks(page)
            if not marks or marks.items() <= request.items():
                return
            request = request | marks

    def told(self, error: Exception, where: str, *, writing: bool) -> StoreError | None:
        """Return the error that the user is told; None: the place is not to blame."""
        failure = error.failure if isinstance(error, _NoListing) else failure_of(error)
        if failure is None:
            if isinstance(error, (TypeError, ValueError)) and not self._retries.reached:
                # Nothing was sent yet: the clients cannot be made.
                why = without_secrets(str(error), self.options)
                return StorageError(
                    f"{where}: no client of S3 can be made ({why}); check the options"
                    " (--storage-options), the environment and the profile"
                )
            return super().told(error, where, writing=writing)
        message = without_secrets(failure.message, self.options)
        failure = failure._replace(message=message)
        return of_s3(failure, where, self.client.endpoint)

    def _key(self, path: str) -> str:
        """Return the key in the bucket of a path."""
        return path[self._skip :]

    def _again(self, request: Callable[[], Result]) -> Result:
        return self._retries.run(request)


def _next_marks(page: dict[str, Any]) -> dict[str, Any]:
    """Return what to ask for to have the page after this one."""
    names = ("NextKeyMarker", "NextUploadIdMarker", "NextPartNumberMarker")
    return {name.removeprefix("Next"): page[name] for name in names if page.get(name)}
