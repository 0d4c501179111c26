"""A data set (or a bucket) on the Hugging Face hub as a place for a store's objects.

The hub keeps a data set as commits. A commit for each object would be slow, and its
history would be of no use to anyone; so what is written is gathered, uploaded in
batches, and committed a thousand objects at a time. What is read or listed is committed
before, so that to whoever writes it is a place like any other.

Reading needs nothing of this: any `hf://` URL is opened like other URLs. Login, token
and endpoint are those of the package huggingface_hub.
"""

from __future__ import annotations

import builtins
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from actstore.errors import ActstoreError, StorageError, first_line
from actstore.format.storage import Buffers, ListedObject, Storage

# Every data set on the hub has this one from the beginning.
GIT_ATTRIBUTES = ".gitattributes"
PROTOCOL = "hf://"
# Bytes that are gathered before they are uploaded; they are in memory until then.
UPLOAD_BYTES = 256 << 20
COMMIT_OBJECTS = 1000
_URL = re.compile(
    r"hf://(?P<kind>datasets|buckets)/(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?"
    r"(/(?P<folder>.+?))?/?"
)
_ADVICE = {
    401: "log in (`hf auth login`), or set HF_TOKEN to a token that is valid",
    403: "the token may not write there; make one that may",
    404: "there is no such repository, or the token may not see it",
    409: "something else was written there meanwhile; run the same command again",
    412: "something else was written there meanwhile; run the same command again",
    429: "too many requests; wait some minutes and run the same command again",
}
_PRECONDITION = 412


def place(url: str, options: Mapping[str, Any] | None = None) -> Storage:
    """Return the objects at a URL, whose writes suit the place.

    Raises:
        StorageError: It is no URL, or one of the hub where no store can lie.
    """
    if not url.startswith(PROTOCOL):
        return Storage(url, dict(options or {}))
    return HubStorage(url, dict(options or {}))


class HubStorage(Storage):
    """The objects of a data set or a bucket on the hub, or of a folder of one.

    A new repository is made where there is none; it is private.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        """Make it; nothing is asked of the hub.

        Raises:
            StorageError: The URL is not one of a data set or a bucket.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise StorageError(
                f"{url}: wanted hf://datasets/OWNER/NAME or hf://buckets/OWNER/NAME,"
                " with a folder after it if you like"
            )
        super().__init__(url, options)
        # Others write there too, so what was listed once may not be all.
        self._fs.invalidate_cache()
        self._is_bucket = match["kind"] == "buckets"
        self._name = match["name"]
        self._revision = match["revision"]
        self._folder = f"{match['folder']}/" if match["folder"] else ""
        self._lock = threading.RLock()
        self._made = False
        self._gathered: dict[str, bytes] = {}
        self._uploaded: dict[str, Any] = {}

    def put(self, key: str, data: Buffers) -> None:
        """Write or replace an object, at the latest when anything is read or listed."""
        whole = data if isinstance(data, bytes) else b"".join(data)
        self._path(key)  # it refuses keys that lead out
        with self._lock:
            self._gathered[key] = whole
            self._uploaded.pop(key, None)
            if sum(map(len, self._gathered.values())) >= UPLOAD_BYTES:
                self._upload()
            if len(self._gathered) + len(self._uploaded) >= COMMIT_OBJECTS:
                self.commit()

    def create(self, key: str, data: Buffers) -> bool:
        """Write an object only if there is none of that key; return whether."""
        with self._lock:
            self._make()
            head = None
            if not self._is_bucket:
                head = self._asked(self._head)
            if self.exists(key):
                return False
            self.put(key, data)
            try:
                self.commit(head)
            except _MovedError:  # another process has committed since the look
                self._uploaded.clear()
                return False
            return True

    def delete(self, key: str) -> None:
        """Remove an object, together with what is to be committed."""
        if self.exists(key):
            with self._lock:
                self._commit_changes({}, [key], None)

    def commit(self, head: str | None = None) -> None:
        """Commit all that was gathered.

        head: the commit that must be the newest one until then; None: any.
        """
        with self._lock:
            if not self._gathered and not self._uploaded:
                return
            self._upload()
            self._commit_changes(self._uploaded, [], head)
            self._uploaded = {}

    def read(self, key: str, limit: int | None = None) -> bytes:
        """Return the whole object, see `Storage.read`."""
        self._commit_if(key)
        return super().read(key, limit)

    def read_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]]
    ) -> builtins.list[bytes | memoryview]:
        """Return several ranges of one object, see `Storage.read_ranges`."""
        self._commit_if(key)
        return super().read_ranges(key, ranges)

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        self._commit_if(key)
        return super().size(key)

    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        self._commit_if(key)
        return super().exists(key)

    def list(self, prefix: str = "") -> builtins.list[str]:
        """Return the keys of all objects under a folder, sorted."""
        self.commit()
        return super().list(prefix)

    def objects(self, prefix: str = "") -> builtins.list[ListedObject]:
        """Return all objects under a folder with size and age, sorted by key."""
        self.commit()
        return super().objects(prefix)

    def _commit_if(self, key: str) -> None:
        """Commit where an object is not there yet that is asked for."""
        with self._lock:
            if key in self._gathered or key in self._uploaded:
                self.commit()

    def _upload(self) -> None:
        """Upload what was gathered; its bytes leave memory, but for small files."""
        from huggingface_hub import CommitOperationAdd

        self._make()
        if self._is_bucket:  # it has no commits: objects are there once uploaded
            self._uploaded.update(self._gathered)
            self._gathered = {}
            if sum(map(len, self._uploaded.values())) >= UPLOAD_BYTES:
                self.commit()
            return
        additions = {
            key: CommitOperationAdd(self._folder + key, data)
            for key, data in self._gathered.items()
        }
        self._asked(
            lambda api: api.preupload_lfs_files(
                self._name,
                additions.values(),
                repo_type="dataset",
                revision=self._revision,
            )
        )
        self._uploaded.update(additions)
        self._gathered = {}

    def _commit_changes(
        self, added: dict[str, Any], deleted: builtins.list[str], head: str | None
    ) -> None:
        """Commit objects that were uploaded, and removals."""
        from huggingface_hub import CommitOperationDelete

        removed = [self._folder + key for key in deleted]
        if self._is_bucket:
            files = [(data, self._folder + key) for key, data in added.items()]
            self._asked(
                lambda api: api.batch_bucket_files(
                    self._name, add=files, delete=removed
                )
            )
        else:
            changes = [*added.values(), *map(CommitOperationDelete, removed)]
            self._asked(
                lambda api: api.create_commit(
                    self._name,
                    changes,
                    commit_message=f"actstore: {len(changes)} objects",
                    repo_type="dataset",
                    revision=self._revision,
                    parent_commit=head,
                )
            )
        self._fs.invalidate_cache()

    def _make(self) -> None:
        """Make the repository where there is none."""
        if self._made:
            return
        if self._is_bucket:
            self._asked(
                lambda api: api.create_bucket(self._name, private=True, exist_ok=True)
            )
        else:
            self._asked(
                lambda api: api.create_repo(
                    self._name, repo_type="dataset", private=True, exist_ok=True
                )
            )
        # The file system remembers what it did not find.
        self._fs.invalidate_cache()
        self._made = True

    def _head(self, api: Any) -> str | None:
        """Return the newest commit."""
        info = api.repo_info(self._name, repo_type="dataset", revision=self._revision)
        sha: str | None = info.sha
        return sha

    def _asked(self, question: Any) -> Any:
        """Return the hub's answer; what it or the network says becomes an error."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._fs.endpoint, token=self._fs.token)
        try:
            return question(api)
        except Exception as error:
            typed = _explained(error, self.url)
            if typed is None:
                raise
            raise typed from error


class _MovedError(StorageError):
    """Another process has committed meanwhile."""


def _explained(error: Exception, url: str) -> ActstoreError | None:
    """Return what the user is told of an error; None: it is the program's fault.

    The hub's own words are shown, which never have the token in them.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return StorageError(
            f"{url}: HF_HUB_OFFLINE is set in the environment; unset it"
        )
    if isinstance(error, HFValidationError):
        return StorageError(f"{url}: {first_line(error)}; choose another name")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None) or 0
        said = error.server_message or first_line(error)
        advice = _ADVICE.get(status, "try again, or see the hub's status")
        kind = _MovedError if status == _PRECONDITION else StorageError
        return kind(f"{url}: the hub answered {status}: {said}; {advice}")
    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):
        return _explained(cause, url)  # "Error while uploading ..."
    is_network = type(error).__module__.startswith(("httpx", "httpcore"))
    if isinstance(error, OSError) or is_network:
        return StorageError(
            f"{url}: the hub cannot be reached: {first_line(error)}; check the network"
            " and HF_ENDPOINT"
        )
    return None
