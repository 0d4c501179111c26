"""The names of a catalog, as users write them: `catalog:NAME` and `catalog:NAME:TAG`.

After the name stands a tag, or the beginning of a content id. Without either it is the
tag `latest`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from actstore.errors import CatalogError
from schemas.catalog import LONGEST_NAME, NAME

PREFIX = "catalog:"
LATEST = "latest"
SHOWN_ID = 12  # characters of a content id that lists show
_NAME = re.compile(NAME)
_CONTENT_ID = re.compile(f"[0-9a-f]{{{SHOWN_ID},64}}")


class CatalogName(NamedTuple):
    """A name, and which of the things that were published under it.

    Attributes:
        name: The name.
        tag: A tag; None where a content id was given, or nothing.
        content_id: The first characters of a content id, or None.
    """

    name: str
    tag: str | None
    content_id: str | None

    @property
    def text(self) -> str:
        """The name as users write it."""
        version = self.tag or self.content_id
        return f"{PREFIX}{self.name}" + (f":{version}" if version else "")


def is_name(text: str) -> bool:
    """Return whether a text is the name of something in a catalog, and no URL."""
    return text.startswith(PREFIX)


def parsed_name(text: str) -> CatalogName:
    """Return the parts of a name, with `catalog:` before it or without.

    Raises:
        CatalogError: It cannot be one.
    """
    name, colon, version = text.removeprefix(PREFIX).partition(":")
    if not is_safe(name):
        raise CatalogError(
            f"{text!r}: {name!r} cannot be a name in a catalog; names are letters and"
            f" digits with `.`, `-` or `_` between them, at most {LONGEST_NAME}, such"
            " as gpt2-tinystories"
        )
    if not colon:
        return CatalogName(name, None, None)
    if _CONTENT_ID.fullmatch(version):
        return CatalogName(name, None, version)
    if not is_safe(version):
        raise CatalogError(
            f"{text!r}: {version!r} cannot be a tag; tags are letters and digits with"
            f" `.`, `-` or `_` between them, at most {LONGEST_NAME}, such as v2"
        )
    return CatalogName(name, version, None)


def is_safe(name: str) -> bool:
    """Return whether a text can be a name or tag, and so a part of a key."""
    return len(name) <= LONGEST_NAME and _NAME.fullmatch(name) is not None
