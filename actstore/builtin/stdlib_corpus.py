"""`builtin:stdlib`: the Python standard library's own source text, which every machine
has.

Documents come in the order of a digest of their path, which is a shuffle that stays the
same when files are added or changed (the library keeps long tables side by side). The
same digest splits training from held-out documents.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})
HELD_OUT_EVERY = 20


def paths(root: Path | None = None) -> list[Path]:
    """Every `.py` file of the standard library in digest order (paths are relative to
    `root`).
    """
    root = root or library()
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(
        (path for path in found if LEFT_OUT.isdisjoint(path.parts)), key=_digest
    )


def documents(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """(relative path, text) of every file that is valid UTF-8; the few that test other
    encodings are left out.
    """
    root = root or library()
    for path in paths(root):
        try:
            yield path.as_posix(), (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def held_out(path: str) -> bool:
    """Whether a document is kept from the builtin models' training (1 in 20, by the
    digest of its path).
    """
    return (
        int.from_bytes(_digest(Path(path))[:4], "little") % HELD_OUT_EVERY
        == HELD_OUT_EVERY - 1
    )


def library() -> Path:
    """The standard library's folder of the running interpreter."""
    return Path(sysconfig.get_paths()["stdlib"])


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.as_posix().encode(), digest_size=8).digest()
