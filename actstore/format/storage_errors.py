"""Tells a user what went wrong with a place, and what to do about it.

What a system call, a file system of fsspec or a client of S3 raises becomes an error of
ours that names the object. No secret comes into it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

from actstore.errors import FullError, ObjectError, StorageError, StoreError
from actstore.format.s3_failures import EXPIRED_CODES, Failure

_ADVICE = {
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may do that there",
    errno.EROFS: "choose a place that can be written",
    errno.EFBIG: "the file system or a limit forbids files of that size",
}
_REFUSED = (
    "these credentials may not do that there: ask whoever owns the bucket (where"
    " listing is not allowed, a missing object looks the same)"
)
_OTHER_REGION = "the bucket is in another region: set AWS_REGION to it"
_NO_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket"
    " wants --storage-options '{\"anon\": true}'"
)
_S3_ADVICE = {
    "AccessDenied": _REFUSED,
    "AccountProblem": _REFUSED,
    "AllAccessDisabled": _REFUSED,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "InvalidAccessKeyId": (
        "nobody there has this access key: check AWS_ACCESS_KEY_ID, the profile and"
        " the endpoint"
    ),
    "InvalidBucketName": "a bucket cannot be called so; check the URL",
    "NoCredentialsError": _NO_CREDENTIALS,
    "NoSuchBucket": "there is no such bucket: check its name and the endpoint",
    "PartialCredentialsError": _NO_CREDENTIALS,
    "PermanentRedirect": _OTHER_REGION,
    "ProfileNotFound": "check AWS_PROFILE and ~/.aws/config",
    "RequestTimeTooSkewed": (
        "this machine's clock and the server's are more than 15 minutes apart: set"
        " this one right (timedatectl shows it)"
    ),
    "SSLError": (
        "check the endpoint's certificate; AWS_CA_BUNDLE names a file with your own"
    ),
    "SignatureDoesNotMatch": (
        "the secret is not that of the access key: check AWS_SECRET_ACCESS_KEY, the"
        " profile and the endpoint"
    ),
    **dict.fromkeys(
        EXPIRED_CODES,
        "the credentials have expired and no others were found: log in again (such as"
        " `aws sso login`), or set new ones; the same command goes on",
    ),
}
# Who has a URL, and with which password.
_USER_OF_URL = re.compile(r"://[^/@\s]*@")
_QUOTA = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}


def secrets_of(options: dict[str, Any]) -> list[str]:
    """Return the values among options, and of the environment, that no one may see."""
    hidden = re.compile(r"secret|token|key|password|credential", re.IGNORECASE)
    found = [
        value
        for name, value in [*_flat(options), *os.environ.items()]
        if isinstance(value, str) and len(value) >= 8 and hidden.search(name)
    ]
    # the longest first: one may be a part of another
    return sorted(found, key=len, reverse=True)


def _flat(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return options with those inside of others, such as `client_kwargs`."""
    flat = []
    for name, value in options.items():
        flat += _flat(value) if isinstance(value, dict) else [(str(name), value)]
    return flat


def without_secrets(text: str, options: dict[str, Any]) -> str:
    """Return a text of a library with secrets, if it has any, left out."""
    text = _USER_OF_URL.sub("://***@", text)
    for secret in secrets_of(options):
        text = text.replace(secret, "***")
    return text


def of_s3(failure: Failure, where: str, endpoint: str) -> StoreError:
    """Return the error that the user is told of an answer of S3, or of none."""
    if failure.kind == "missing":
        return ObjectError(f"{where}: there is no such object")
    told = [failure.code, failure.message]
    what = ": ".join(part for part in told if part) or failure.name
    if failure.code in _QUOTA or failure.status == 507:
        return FullError(f"{where}: {what}; the place is full: free some space there")
    if failure.kind == "unreached":
        return StorageError(
            f"{where}: {endpoint} cannot be reached ({failure.message}); check"
            " AWS_ENDPOINT_URL and the network"
        )
    if failure.kind == "again" and failure.status and not failure.code:
        return StorageError(
            f"{where}: {endpoint} gives answers that S3 does not ({what}), again and"
            " again; it is overloaded or broken, or no S3 server: check"
            " AWS_ENDPOINT_URL, or try later"
        )
    if failure.kind == "again":
        return StorageError(
            f"{where}: {what}, again and again; {endpoint} is overloaded or broken, try"
            " later (the same command goes on)"
        )
    advice = _S3_ADVICE.get(failure.code)
    if advice is None and failure.status == 403:
        advice = _REFUSED
    if advice is None and failure.status in {301, 307}:
        advice = _OTHER_REGION
    advice = advice or "check the endpoint and the credentials"
    return StorageError(f"{where}: {what}; {advice}")


def typed(
    error: Exception, where: str, local: Path | None, *, writing: bool
) -> StoreError | None:
    """Return the error that the user is told of a folder or a place of fsspec's.

    None: it is not the fault of the place or the URL.
    """
    if isinstance(error, OSError):
        return _of_system(error, where, local, writing=writing)
    # what fsspec's read-only places (http, zip) raise on a write
    if isinstance(error, NotImplementedError):
        return StorageError(
            f"{where}: places of this kind can be read only; choose another one"
        )
    # fsspec says "Protocol not known" of a URL, and ImportError where a package lacks
    unknown_protocol = isinstance(error, ValueError) and "rotocol" in str(error)
    if unknown_protocol or isinstance(error, ImportError):
        return StorageError(f"{where}: not a URL that can be opened: {error}")
    # obstore's word for `..` and the like
    if isinstance(error, ValueError) and "parse path" in str(error):
        return StorageError(f"{where}: no key of an object can be so; check the URL")
    if is_of_a_service(error):
        return StorageError(f"{where}: {error}; check the endpoint and the credentials")
    return None


def is_of_a_service(error: Exception) -> bool:
    """Return whether an error comes from an object store or the way to it.

    Other errors come from the program.
    """
    services = (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "fsspec",
        "obstore",
        "httpx",
        "httpcore",
    )
    return type(error).__module__.startswith(services)


def _of_system(
    error: OSError, where: str, local: Path | None, *, writing: bool
) -> StoreError:
    """Return the error that the user is told of an error of the operating system."""
    if isinstance(error, IsADirectoryError):
        return ObjectError(f"{where}: it is a folder, wanted a file; check the path")
    if writing and isinstance(error, (FileExistsError, NotADirectoryError)):
        return StorageError(
            f"{where}: {_in_the_way(error)} is a file, wanted a folder; check the path"
        )
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ObjectError(f"{where}: there is no such object")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return FullError(
            f"{where}: {error.strerror}; {_full(local)}: free some space there"
        )
    otherwise = "check the path, the network and the credentials"
    advice = _ADVICE.get(error.errno or 0, otherwise)
    return StorageError(f"{where}: {error.strerror or error}; {advice}")


def _in_the_way(error: OSError) -> str:
    """Return the first part of a path that is there and not a folder."""
    if error.filename is not None:
        path = Path(os.fsdecode(error.filename))
        for part in (*reversed(path.parents), path):
            if part.exists() and not part.is_dir():
                return str(part)
    return "what is there"


def _full(path: Path | None) -> str:
    """Return which disk is full, or used up to a quota, and how large it is."""
    if path is None:
        return "the place is full"
    while not path.exists() and path != path.parent:
        path = path.parent
    # Upwards as long as it is the same disk: its mount point.
    mount = path.resolve()
    while mount != mount.parent and mount.parent.stat().st_dev == mount.stat().st_dev:
        mount = mount.parent
    usage = shutil.disk_usage(mount)
    return (
        f"the disk is full (that at {mount}, {usage.free / 1e6:,.1f} of"
        f" {usage.total / 1e6:,.1f} MB left)"
    )
