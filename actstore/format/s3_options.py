"""Checks the options and the URL of a place in S3 before a client is made of them.

Its clients say little of what they cannot use: one ends with a traceback, the other
takes a certificate that is not there for an object that is not there. Whatever is wrong
here will not pass, so it is told at once. No message repeats a value.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from actstore.errors import SpecError, StorageError

# Of fsspec's options for all places, and of botocore's session.
_OF_ALL = {
    "batch_size",
    "listings_expiry_time",
    "max_paths",
    "profile",
    "skip_instance_cache",
    "use_listings_cache",
}
_BUCKET = re.compile(r"[\w.:-]{1,255}", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
# Not with `user:password@`: logs would have it, and the clients do not agree on it.
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.ASCII)


class Wanted(NamedTuple):
    """The values that an option takes, in words, and the check of one."""

    text: str
    fits: Callable[[Any], bool]


def check_path(path: str, url: str) -> None:
    """Check the path in S3 of a URL, without its protocol.

    Raises:
        StorageError: It has no bucket, or keys in it would be taken for others.
    """
    bucket, _, prefix = path.partition("/")
    if not bucket:
        raise StorageError(f"{url}: it names no bucket; wanted s3://bucket/folder")
    if _BUCKET.fullmatch(bucket) is None:
        raise StorageError(f"{url}: a bucket cannot be called so; check the URL")
    # Clients differ in what they make of such keys.
    parts = prefix.split("/") if prefix else []
    if any(part in {"", ".", ".."} for part in parts) or _UNPRINTABLE.search(prefix):
        raise StorageError(
            f"{url}: a part of its path is empty, `.`, `..` or has unprintable"
            " characters; choose a folder without"
        )


def check_options(options: Mapping[str, Any], url: str) -> None:
    """Check options of s3fs, and what the environment has in place of some.

    Raises:
        SpecError: One has no meaning, or a value that cannot be.
    """
    for name in options:
        if name not in _names_of_s3fs():
            raise SpecError(
                f"{url}: there is no option {name!r} of S3 (--storage-options); wanted"
                f" one of {', '.join(sorted(_names_of_s3fs()))}"
            )
    _check_values(options, _VALUES, "", url)
    for table, values in (("client_kwargs", _CLIENT), ("config_kwargs", _CONFIG)):
        _check_values(options.get(table) or {}, values, f"{table}: ", url)
    for name, wanted in _ENVIRONMENT.items():
        text = os.environ.get(name)
        if text and not wanted.fits(text):
            raise SpecError(f"{name}: wanted {wanted.text}; check the environment")


def printable(text: str | None, what: str) -> str | None:
    """Return a part of the credentials, which goes into the header of a request.

    Raises:
        SpecError: It cannot be there: a line end came with it, say.
    """
    if text is not None and _UNPRINTABLE.search(text):
        raise SpecError(
            f"the {what} that was found has a line end or another unprintable character"
            " in it; check the environment, the options or the profile's file"
        )
    return text


@functools.cache
def _names_of_s3fs() -> frozenset[str]:
    """Return the names of options that s3fs has."""
    import s3fs

    own = set(inspect.signature(s3fs.S3FileSystem.__init__).parameters)
    return frozenset(own - {"self", "kwargs", "session", "loop"} | _OF_ALL)


def _check_values(
    options: Mapping[str, Any],
    table: Mapping[str, Wanted],
    prefix: str,
    url: str,
) -> None:
    """Check those options that a table names."""
    for name, value in options.items():
        wanted = table.get(name)
        if wanted is not None and not wanted.fits(value):
            raise SpecError(
                f"{url}: option {prefix}{name}: wanted {wanted.text}"
                " (--storage-options)"
            )


def _is_text(value: Any) -> bool:
    # None is what Python code gives for "as usual"
    return value is None or (
        isinstance(value, str) and _UNPRINTABLE.search(value) is None
    )


def _is_endpoint(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, str) or _ENDPOINT.fullmatch(value) is None:
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_table(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_count(value: Any) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    return value is None or (number and value >= 1)


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value <= _LONGEST_TIMEOUT


def _is_certificate(value: Any) -> bool:
    return value is None or isinstance(value, bool) or _is_there(value)


def _is_there(value: Any) -> bool:
    return isinstance(value, str) and Path(value).exists()


_LONGEST_TIMEOUT = 86_400  # seconds
_TEXT = Wanted("text without line ends", _is_text)
_ENDPOINT_URL = Wanted(
    "a URL such as https://s3.example.org, without a user in it", _is_endpoint
)
_SWITCH = Wanted("true or false", _is_switch)
_TABLE = Wanted("an object of options", _is_table)
_COUNT = Wanted("a whole number from 1 on", _is_count)
_SECONDS = Wanted(f"seconds, more than 0 and at most {_LONGEST_TIMEOUT:,}", _is_seconds)
_CERTIFICATE = Wanted(
    "true, false or the path of a file with certificates that is there",
    _is_certificate,
)
_CERTIFICATE_FILE = Wanted(
    "the path of a file with certificates that is there", _is_there
)
_ENVIRONMENT = {
    "AWS_CA_BUNDLE": _CERTIFICATE_FILE,
    "AWS_ENDPOINT_URL": _ENDPOINT_URL,
    "AWS_ENDPOINT_URL_S3": _ENDPOINT_URL,
    "REQUESTS_CA_BUNDLE": _CERTIFICATE_FILE,
}
_VALUES = {
    **dict.fromkeys(("key", "secret", "token", "username", "password"), _TEXT),
    **dict.fromkeys(("anon", "use_ssl", "requester_pays"), _SWITCH),
    **dict.fromkeys(("version_aware", "cache_regions"), _SWITCH),
    **dict.fromkeys(("default_block_size", "max_concurrency"), _COUNT),
    **dict.fromkeys(("client_kwargs", "config_kwargs"), _TABLE),
    "endpoint_url": _ENDPOINT_URL,
    "profile": _TEXT,
    "s3_additional_kwargs": _TABLE,
}
_CLIENT = {
    "aws_access_key_id": _TEXT,
    "aws_secret_access_key": _TEXT,
    "aws_session_token": _TEXT,
    "endpoint_url": _ENDPOINT_URL,
    "region_name": _TEXT,
    "use_ssl": _SWITCH,
    "verify": _CERTIFICATE,
}
_CONFIG = {
    "connect_timeout": _SECONDS,
    "max_pool_connections": _COUNT,
    "read_timeout": _SECONDS,
    "region_name": _TEXT,
    "retries": _TABLE,
    "s3": _TABLE,
    "signature_version": _TEXT,
}
