"""What a path or URL leads to: a literal local path comes before anything that its
signs could mean.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# how the pointer begins that git leaves in a file's place
GIT_LFS = b"version https://git-lfs.github.com/spec/"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """fsspec's file system for a path or URL, and the path in it. Raises ValueError,
    ImportError, OSError.

    Without a protocol it is a local path, and so is whatever lies here by exactly that
    name: fsspec would take `::` in it for a chain of file systems.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if (path := local_path(url)) is None:
        found, inside = url_to_fs(url, **options)
        return found, str(inside)
    if (why := windows_path(url)) is not None:
        raise ValueError(why)
    return LocalFileSystem(**options), os.path.abspath(path)  # noqa: PTH100 (a link keeps its own name)


def local_path(url: str) -> Path | None:
    """The local path that a text without a protocol is; None for a URL that no file
    here is called by.
    """
    if url.startswith("file://") and "::" in url:
        return Path(url.removeprefix("file://"))
    path = Path(url).expanduser()
    return path if "://" not in url or _is_here(path) else None


def windows_path(url: str) -> str | None:
    """What to say of a path with a drive letter, where there are no drives and nothing
    here is called so; else None.
    """
    if os.name == "nt" or _DRIVE.match(url) is None:
        return None
    path = Path(url)
    if any(map(_is_here, (path, *path.parents[:-1]))):
        return None
    return (
        "a path with a drive letter, and this system has no drives; give the path as it"
        " is here, such as /mnt/data"
    )


def _is_here(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False
