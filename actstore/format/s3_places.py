"""Opens buckets of S3: one set of connections for each, however often it is asked for.

Importing this loads neither s3fs nor obstore.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

from actstore.format.s3_objects import S3Objects
from actstore.format.s3_options import check_options, check_path

_MOST_PLACES = 32  # buckets, each with its options, whose connections are kept
_places: dict[tuple[int, str, str, str], S3Objects] = {}
_lock = threading.Lock()
_NO_RETRIES = {"total_max_attempts": 1, "mode": "standard"}


def is_s3(url: str) -> bool:
    """Return whether a URL is of S3, and not of a chain of file systems."""
    return url.startswith(("s3://", "s3a://")) and "::" not in url


def s3_place(url: str, options: dict[str, Any]) -> tuple[S3Objects, str]:
    """Return the objects of a URL's bucket, and the path that the URL is.

    Those of one bucket, options and environment are made once: each has connections.

    Raises:
        StorageError: The URL cannot be of S3.
        SpecError: An option cannot be used.
    """
    path = str(_file_system_class()._strip_protocol(url))
    check_path(path, url)
    check_options(options, url)
    bucket = path.partition("/")[0]
    environment = sorted(
        (name, value) for name, value in os.environ.items() if name.startswith("AWS_")
    )
    key = (os.getpid(), bucket, repr(sorted(options.items())), repr(environment))
    with _lock:
        place = _places.pop(key, None) or S3Objects(
            _file_system(options), bucket, options
        )
        # The one that was used last is the last to go.
        _places[key] = place
        while len(_places) > _MOST_PLACES:
            del _places[next(iter(_places))]
    return place, path


def _file_system(options: dict[str, Any]) -> Any:
    """Return s3fs's file system of some options; it tries nothing again by itself."""
    config = {"retries": _NO_RETRIES, **(options.get("config_kwargs") or {})}
    own = {
        # Other processes write to a store: what was listed once may not be all.
        "use_listings_cache": False,
        "skip_instance_cache": True,
        **options,
        "config_kwargs": config,
    }
    return _file_system_class()(**own)


@functools.cache
def _file_system_class() -> Any:
    import s3fs

    return type("S3FileSystem", (s3fs.S3FileSystem,), {"retries": 1})
