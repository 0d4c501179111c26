"""The files of a run's folder, as the service hands them out.

A file is only ever opened by a key of the folder's own listing. What a browser makes of
it is fixed by the end of its name; a page is handed out to be saved, never shown, since
it could be anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.service import Artifact
from trainer.errors import UnknownRunError

MOST_ARTIFACTS = 10_000
PART_BYTES = 1 << 20
_KINDS = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".yaml": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}
_ANY = "application/octet-stream"


class ArtifactParts(NamedTuple):
    """A file of a run's folder, and its bytes.

    Attributes:
        artifact: The file.
        parts: Its bytes, in pieces.
    """

    artifact: Artifact
    parts: Iterator[bytes]


def artifacts(storage: Storage) -> list[Artifact]:
    """Return the files of a run's folder, sorted by key."""
    listed = [one for one in storage.objects() if _is_shown(one.key)]
    return [
        Artifact(key=one.key, bytes=one.bytes, content_type=_kind(one.key))
        for one in listed[:MOST_ARTIFACTS]
    ]


def open_artifact(storage: Storage, key: str) -> ArtifactParts:
    """Return a file of a run's folder.

    Raises:
        UnknownRunError: There is none of that key.
        CorruptError: It is a pipe, or a link that leads out of the folder.
    """
    found = next((one for one in artifacts(storage) if one.key == key), None)
    if found is None:
        raise UnknownRunError(f"there is no artifact {ascii(key)[:200]} of this run")
    try:
        size = storage.size(key)
        first = _part(storage, key, 0, size)
    except CorruptError:
        raise
    except ObjectError as error:
        raise UnknownRunError(f"artifact {key} is gone") from error
    artifact = found.model_copy(update={"bytes": size})
    return ArtifactParts(artifact, _parts(storage, key, first, size))


def _parts(storage: Storage, key: str, first: bytes, size: int) -> Iterator[bytes]:
    """Yield a file's bytes; no more than it had at first."""
    yield first
    for offset in range(PART_BYTES, size, PART_BYTES):
        yield _part(storage, key, offset, size)


def _part(storage: Storage, key: str, offset: int, size: int) -> bytes:
    length = min(PART_BYTES, size - offset)
    if length <= 0 and storage.local is None:
        return b""
    # Of an empty one, too: a pipe has no bytes, and is refused as it is opened.
    (part,) = storage.read_ranges(key, [(offset, length)])
    return bytes(part)


def _is_shown(key: str) -> bool:
    """Return whether a file is one of the run's, and no lock or temporary file."""
    return not any(part.startswith(".") for part in key.split("/"))


def _kind(key: str) -> str:
    dot = key.rfind(".")
    return _KINDS.get(key[dot:] if dot >= 0 else "", _ANY)
