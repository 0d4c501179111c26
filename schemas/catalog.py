"""The records of a catalog: stores and runs that were published, and tags."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from schemas.base import Schema
from schemas.records import Ratio
from schemas.unprintable import UNPRINTABLE

CATALOG_VERSION = 1  # as `format_version` of the records says
Kind = Literal["store", "run"]
# Letters and digits, with `.`, `-` or `_` between them: safe as a part of a key.
NAME = r"[A-Za-z0-9]+(?:(?:\.|[_-]+)[A-Za-z0-9]+)*"
LONGEST_NAME = 100
DIGEST = "[0-9a-f]{64}"
_WORDS_OF_SECRETS = (
    r"[\w-]*(?:token|sig|signature|secret|password|passwd|pwd|credential|apikey"
    r"|api[_-]key|access[_-]?key|auth)[\w-]*"
)
# `s3://key:secret@bucket`, and `?X-Amz-Signature=...` or `&token=...`.
# One character of the protocol is enough: more would take the square of their number.
_USER = re.compile(r"[\w+.-]://[^/?#\s]*@")
_QUERY = re.compile(rf"[?&;#]{_WORDS_OF_SECRETS}=", re.IGNORECASE)

_UNPRINTABLE = re.compile(UNPRINTABLE)
MOST = 1 << 62  # of anything that is counted


def has_secret(text: str) -> bool:
    """Return whether a text looks like a URL with a password, a key or a token."""
    return _USER.search(text) is not None or _QUERY.search(text) is not None


def _without_secret(text: str) -> str:
    if has_secret(text):
        # The text itself is not repeated: errors are logged.
        raise ValueError("a URL with a password, key or token in it is not recorded")
    if _UNPRINTABLE.search(text):
        raise ValueError("it has control characters")
    return text


_PARTS = re.compile(r"(^|/)\.{0,2}(/|$)")
_UPWARDS = re.compile(r"/\.\.?(/|$)")


def _place(url: str) -> str:
    """Return a URL that a store or run can lie at, or a path inside a catalog."""
    is_path = "://" not in url and not url.startswith("/")
    # `::` is a chain of file systems, and `catalog:` would be a name for a name.
    if "::" in url or url.startswith("catalog:") or "\\" in url:
        raise ValueError("it is no URL of a store or run")
    if is_path and _PARTS.search(url):
        raise ValueError("it leads out of the catalog")
    if _UPWARDS.search(url):
        raise ValueError("it has `.` or `..` as a part")
    return url


Digest = Annotated[str, Field(pattern=f"^{DIGEST}$")]
# Length first: a text is searched only once it is known to be short.
Plain = Annotated[str, Field(max_length=4096), AfterValidator(_without_secret)]
"""Text that is recorded for everyone to read: no secrets, no control characters."""
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=LONGEST_NAME)]
"""The name of a store or run in a catalog, which is a part of a key."""
Time = Annotated[str, Field(pattern=r"^\d{4}(-\d\d){2}T\d\d(:\d\d){2}\+00:00$")]
"""A time of one form, so that the later one is the one that sorts behind."""


class Published(Schema):
    """The fields that records of stores and of runs share."""

    format: Literal["actstore catalog"] = "actstore catalog"
    format_version: Literal[1] = Field(default=1, description="version of this record")
    name: Name = Field(description="its name in the catalog")
    url: Annotated[Plain, AfterValidator(_place)] = Field(
        min_length=1,
        description="absolute URL, or the path from the catalog where it lies inside",
    )
    content_id: Digest = Field(description="digest of all that it holds")
    model: Plain = Field(description="name of the language model")
    sites: tuple[Plain, ...] = Field(min_length=1, description="names of its sites")
    by: Plain | None = Field(
        default=None, description="who published it; null: left out"
    )
    when: Time = Field(description="date and time of that in UTC, ISO 8601")
    actstore: Plain = Field(description="version of actstore")


class PublishedStore(Published):
    """`records/store/NAME/DIGEST.json` of a catalog: a store that was published.

    DIGEST is blake3 of the record's other values as JSON, without who, when, version.
    """

    kind: Literal["store"] = "store"
    corpus: Plain | None = Field(description="name of the corpus; null: not known")
    rows: int = Field(ge=0, le=MOST, description="rows of each site")
    bytes: int = Field(ge=0, le=MOST, description="bytes that all units' objects take")
    dtype: Plain = Field(description="dtype that values are stored in")


class RunMetrics(Schema):
    """The figures of a run's `eval.json` by which runs are compared."""

    split: Literal["train", "held_out"] = Field(description="rows it was evaluated on")
    rows: int = Field(ge=0, le=MOST, description="how many rows")
    fvu: Ratio = Field(description="fraction of variance unexplained")
    l0: Ratio = Field(description="latents that fire in a row")
    ce_recovered: Ratio | None = Field(
        description="share of the loss against zeros that is recovered; null: not"
        " measured"
    )
    dead: int = Field(ge=0, le=MOST, description="latents that never fired")


class PublishedRun(Published):
    """`records/run/NAME/DIGEST.json` of a catalog: a run that was published."""

    kind: Literal["run"] = "run"
    sae: Plain = Field(description="kind of its SAE")
    n_latents: int = Field(gt=0, le=MOST, description="dictionary size")
    steps: int = Field(ge=0, le=MOST, description="steps of training")
    rows: int = Field(ge=0, le=MOST, description="rows trained on")
    store: Plain = Field(description="absolute URL of its store; empty: it has none")
    store_content_id: str = Field(
        pattern=f"^({DIGEST})?$", description="content id of that store; empty: none"
    )
    metrics: RunMetrics | None = Field(description="null: it has not been evaluated")


class TagRecord(Schema):
    """`tags/KIND/NAME/TAG/00000001.json` of a catalog: what a tag leads to.

    A tag moves by a new record; the one with the largest number counts.
    """

    format: Literal["actstore catalog"] = "actstore catalog"
    format_version: Literal[1] = Field(default=1, description="version of this record")
    record: Digest | None = Field(
        description="DIGEST of the record that it leads to; null: to none any more"
    )
    by: Plain | None = Field(default=None, description="who moved it; null: left out")
    when: Time = Field(description="date and time of that in UTC, ISO 8601")
