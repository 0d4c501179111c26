"""Finds the file system that a path or URL leads to.

A local file of exactly that name comes before any other meaning of the text, even where
the name has signs of a URL in it, such as `::`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# How the pointer begins that git-LFS leaves in the place of a large file.
GIT_LFS = b"version https://git-lfs.github.com/spec/"
# A path of Windows, such as C:\data or c:/data.
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Return fsspec's file system for a path or URL, and the path in it.

    Without a protocol it is a local path, and so is whatever lies here by exactly that
    name: fsspec would take `::` in it for a chain of file systems.

    Raises:
        ValueError: The URL cannot be, or has a drive letter where there are no drives.
        ImportError: Its protocol needs a package that is not installed.
        OSError: The place cannot be reached.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    path = local_path(url)
    if path is None:
        try:
            remote, path_there = url_to_fs(url, **options)
        except (AttributeError, KeyError, TypeError) as error:
            # `reference://` and others are opened by more than a URL
            raise ValueError(f"this protocol cannot be opened so: {error}") from error
        return remote, str(path_there)
    why = windows_path(url)
    if why is not None:
        raise ValueError(why)
    return LocalFileSystem(**options), os.path.abspath(path)  # noqa: PTH100 (a link keeps its own name)


def local_path(url: str) -> Path | None:
    """Return the local path that a text is; None for a URL.

    A text without a protocol is one, and so is whatever a file here is called.
    """
    if url.startswith("file://") and "::" in url:
        return Path(url.removeprefix("file://"))
    path = Path(url).expanduser()
    return path if "://" not in url or _is_here(path) else None


def windows_path(url: str) -> str | None:
    """Return what to say of a path with a drive letter, or None.

    None: there are drives on this system, or something here is called so.
    """
    if os.name == "nt" or _DRIVE.match(url) is None:
        return None
    path = Path(url)
    # the last of its parents is the folder that we are in, which is always here
    folders = path.parents[:-1]
    if any(_is_here(part) for part in (path, *folders)):
        return None
    return (
        "a path with a drive letter, and this system has no drives; give the path as it"
        " is here, such as /mnt/data"
    )


def name_in_catalog(url: str) -> str | None:
    """Return what to say of a catalog's name where a path or URL is wanted, or None."""
    if not url.startswith("catalog:"):
        return None
    return (
        "a name in a catalog opens what was published, and cannot be used here; give"
        " the URL itself"
    )


def _is_here(path: Path) -> bool:
    """Return whether there is such a file or folder."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False
