"""Makes a folder of this machine a cache, and opens it without following links.

A folder that holds anything else is refused: files of a cache are removed by name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from actstore.errors import FormatVersionError, SpecError

TAG = "CACHEDIR.TAG"
# The first line is that of the Cache Directory Tagging Specification.
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# actstore cache, version 1\n"
_TAG_OF_OURS = "# actstore cache, version "


def claim_folder(folder: Path) -> None:
    """Check that a folder is a cache; make one of a folder that is empty or not there.

    Raises:
        SpecError: There is something else.
        FormatVersionError: A newer actstore has made it.
        OSError: It cannot be read or written.
    """
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"cache {folder}: it is a file, wanted a folder")
    folder.mkdir(parents=True, exist_ok=True)
    text = _tag_text(folder)
    if text == TAG_TEXT:
        return
    if text is not None and _TAG_OF_OURS in text:
        raise FormatVersionError(
            f"cache {folder}: a newer actstore has made it; choose another folder, or"
            " update"
        )
    # Several processes may begin at once: a tag that another one writes is no reason
    # to refuse, and it may be there by now.
    there = sorted(
        path.name
        for path in folder.iterdir()
        if path.name != "lost+found" and not path.name.startswith(f".{TAG}-")
    )
    if there and _tag_text(folder) != TAG_TEXT:
        raise SpecError(
            f"cache {folder}: it is not empty ({there[0]}, ...) and not a cache of"
            " actstore; choose an empty folder"
        )
    write_whole(folder / TAG, TAG_TEXT)


def write_whole(path: Path, text: str) -> None:
    """Write a small file of a cache, whole or not at all."""
    temporary = path.parent / f".{TAG}-{os.urandom(8).hex()}"
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_links(folder: Path, paths: Iterable[Path]) -> None:
    """Raise SpecError where a file of a cache is no plain file."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise SpecError(
                    f"cache {folder}: {path.name} is no regular file; choose another"
                    " folder"
                )


def opened_folder(path: Path) -> int:
    """Make a folder in a cache where there is none, and open it.

    Raises:
        SpecError: It is a link.
    """
    path.mkdir(exist_ok=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise SpecError(
                f"cache {path.parent}: {path.name} is a link, wanted a folder; choose"
                " another one"
            ) from error
        raise


def _tag_text(folder: Path) -> str | None:
    """Return what a folder's tag says; None where there is none."""
    try:
        with (folder / TAG).open("rb") as file:
            return file.read(4096).decode("ascii", "replace")
    except FileNotFoundError:
        return None
