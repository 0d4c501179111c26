"""The keys of a catalog's records, and the digest that a record is kept under."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from blake3 import blake3

from schemas.catalog import DIGEST, NAME, Kind

RECORDS = "records"
TAGS = "tags"
_RECORD = re.compile(f"{RECORDS}/(store|run)/({NAME})/({DIGEST})\\.json")
_TAG = re.compile(f"{TAGS}/(store|run)/({NAME})/({NAME})/([0-9]{{8}})\\.json")
# They say who published it and when, and not what: publishing the same again is the
# same record.
_NOT_DIGESTED = {"by", "when", "actstore"}


class RecordKey(NamedTuple):
    """Where a record lies.

    Attributes:
        kind: `store` or `run`.
        name: The name it was published under.
        digest: The digest of its values.
    """

    kind: Kind
    name: str
    digest: str

    @property
    def key(self) -> str:
        """The key of its object."""
        return f"{RECORDS}/{self.kind}/{self.name}/{self.digest}.json"


class TagKey(NamedTuple):
    """Where a record of a tag lies.

    Attributes:
        kind: `store` or `run`.
        name: The name that the tag is of.
        tag: The tag.
        number: Its number; the largest counts.
    """

    kind: Kind
    name: str
    tag: str
    number: int

    @property
    def key(self) -> str:
        """The key of its object."""
        return f"{TAGS}/{self.kind}/{self.name}/{self.tag}/{self.number:08d}.json"


def record_key(key: str) -> RecordKey | None:
    """Return what the key of a record says; None for another object's key."""
    match = _RECORD.fullmatch(key)
    if match is None:
        return None
    kind, name, digest = match.groups()
    return RecordKey(_kind(kind), name, digest)


def tag_key(key: str) -> TagKey | None:
    """Return what the key of a tag's record says; None for another object's key."""
    match = _TAG.fullmatch(key)
    if match is None:
        return None
    kind, name, tag, number = match.groups()
    return TagKey(_kind(kind), name, tag, int(number))


def _kind(text: str) -> Kind:
    return "run" if text == "run" else "store"


def record_digest(values: dict[str, Any]) -> str:
    """Return the digest of a record's values, as JSON has them."""
    digested = {k: v for k, v in values.items() if k not in _NOT_DIGESTED}
    text = json.dumps(digested, sort_keys=True, separators=(",", ":"))
    return blake3(text.encode()).hexdigest()
