"""The corpus `builtin:stdlib`: the Python standard library's own source text.

Every machine has it. Documents come in the order of a digest of their path: a shuffle
that stays the same when files are added or changed. (By path, the library has long
tables side by side.) The same digest says which documents are held out.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})
HELD_OUT_EVERY = 20


def document_paths(root: Path | None = None) -> list[Path]:
    """Return every `.py` file of the standard library, in the order of their digests.

    Args:
        root: The folder to look in; None: the library of the Python that is running.

    Returns:
        Paths relative to `root`.
    """
    root = root or library_folder()
    documents = []
    for folder, folders, names in os.walk(root):
        # Packages that a user has installed are no part of the library, and may be
        # many more files.
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        place = Path(folder).relative_to(root)
        documents += [place / name for name in names if name.endswith(".py")]
    return sorted(documents, key=_digest)


def documents(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Give the relative path and the text of every file that is valid UTF-8.

    A few files test other encodings; they are left out.
    """
    root = root or library_folder()
    for path in document_paths(root):
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield path.as_posix(), text


def is_held_out(path: str) -> bool:
    """Return whether a document is kept from the training of the models that ship.

    One in HELD_OUT_EVERY is, by the digest of its path.
    """
    number = int.from_bytes(_digest(Path(path))[:4], "little")
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def library_folder() -> Path:
    """Return the standard library's folder of the Python that is running."""
    return Path(sysconfig.get_paths()["stdlib"])


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.as_posix().encode(), digest_size=8).digest()
