"""The places that stores may be read from: prefixes, and nothing outside of them.

Users of the service name stores, and the service opens them with its own rights and
credentials. So a store must lie below one of the prefixes that were set when the
service was started: local folders, with all links followed, or places in an object
store. Whatever else fsspec would open (`http://`, `memory://`, chains with `::`) is
refused by its form alone, before anything is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from actstore.catalog.catalog import Catalog
from actstore.catalog.names import is_name
from actstore.catalog.resolve import resolved
from actstore.errors import SpecError
from actstore.format.file_systems import local_path
from schemas.catalog import has_secret

PROTOCOLS = ("s3", "gs", "az", "abfs", "hf")  # of object stores
LONGEST_URL = 1024
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_URL = re.compile(r"[\s\\?#%@]|::")
_BUCKET = re.compile(r"[A-Za-z0-9][\w.@-]*")


class AllowedStores:
    """The prefixes, and the check of a store against them.

    Attributes:
        prefixes: Real paths of local folders, and URLs without a slash at their end.
    """

    def __init__(self, prefixes: Sequence[str], catalog: str | None = None) -> None:
        """Set the prefixes.

        Args:
            prefixes: Local folders and URLs of object stores.
            catalog: The URL of the catalog whose names may be used; None: no names.

        Raises:
            SpecError: One cannot be a prefix.
        """
        self.prefixes = tuple(dict.fromkeys(map(_prefix, prefixes)))
        self._catalog = catalog

    def check(self, store: str) -> str:
        """Return the URL, or the path without links, at which an allowed store lies.

        Args:
            store: As a spec names it: a path, a URL or a name in the catalog.

        Raises:
            SpecError: It is not allowed; the message repeats no secret.
            CatalogError: The name leads to nothing.
        """
        _check_text(store)
        if is_name(store):
            if self._catalog is None:
                raise SpecError(
                    f"store {store}: this service has no catalog; give the store's URL"
                )
            found = resolved(store, "store", Catalog(self._catalog)).url
            _check_text(found)
            return self._allowed(found)
        return self._allowed(store)

    def _allowed(self, url: str) -> str:
        """Return where a path or URL leads, if that is allowed."""
        scheme = _SCHEME.match(url)
        if scheme is None:
            return self._allowed_path(url)
        # A folder here could have the name that the URL is, and would be opened.
        if scheme[1] not in PROTOCOLS or local_path(url) is not None:
            raise self._refusal(url)
        place = url.rstrip("/")
        parts = place.partition("://")[2].split("/")
        if not all(parts) or {".", ".."} & set(parts):
            raise self._refusal(url)
        if not any(_is_below(place, prefix) for prefix in self.prefixes):
            raise self._refusal(url)
        return place

    def _allowed_path(self, path: str) -> str:
        """Return the real path of a local folder, if that is allowed."""
        is_chain = "::" in path or "://" in path
        if is_chain or path.startswith("~") or ".." in Path(path).parts:
            raise self._refusal(path)
        real = os.path.realpath(path)
        if not any(_is_below(real, prefix) for prefix in self.prefixes):
            # Where links lead is not for users to know.
            raise self._refusal(path)
        return real

    def _refusal(self, store: str) -> SpecError:
        where = ", ".join(self.prefixes) or "no place"
        return SpecError(
            f"store {store}: this service does not read from there; it reads stores in"
            f" {where}, and by their names in the catalog if they lie there"
        )


def _check_text(store: str) -> None:
    """Raise SpecError for a text that no store of the service is called."""
    if len(store) > LONGEST_URL:
        raise SpecError(f"store: wanted at most {LONGEST_URL} characters")
    if has_secret(store):
        # Not repeated: errors are logged.
        raise SpecError(
            "store: a URL with a user, password, key or token in it is not taken; the"
            " service has credentials of its own"
        )
    is_url = _SCHEME.match(store) is not None
    if not store or _CONTROL.search(store) or (is_url and _NOT_IN_URL.search(store)):
        raise SpecError(
            f"store {ascii(store)[:200]}: wanted a path, a URL of an object store or"
            " catalog:NAME; URLs without spaces, `::`, `\\`, `%`, `?`, `#` and `@`"
        )


def _prefix(text: str) -> str:
    """Return a prefix as URLs and real paths are compared with it."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return os.path.realpath(Path(text).expanduser())
    protocol, mark, rest = text.rstrip("/").partition("://")
    bucket, *parts = rest.split("/")
    is_place = mark and protocol in PROTOCOLS and _BUCKET.fullmatch(bucket)
    if not is_place or _NOT_IN_URL.search(text) or not all(parts) or ".." in parts:
        raise SpecError(
            f"--stores {text}: wanted a folder, or a bucket and folder of"
            f" {', '.join(PROTOCOLS)}, such as s3://bucket/stores"
        )
    return text.rstrip("/")


def _is_below(place: str, prefix: str) -> bool:
    """Return whether a place is a prefix, or lies below it."""
    return place == prefix or place.startswith(prefix.rstrip("/") + "/")
