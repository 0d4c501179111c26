"""Locks of files that end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

_OWNER = re.compile(r"[0-9a-f]{32}", re.ASCII)
# Read only: others' files may be no more than readable, and that is enough to lock.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class ProcessLock:
    """A file that is locked for as long as this process lives.

    Making, closing and asking of others have to be done under one other lock.

    Attributes:
        owner: The name of the file, by which this process is known.
    """

    def __init__(self, folder: Path) -> None:
        self.owner = os.urandom(16).hex()
        self._path = folder / self.owner
        self._fd = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the file and its lock."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def forget(self) -> None:
        """Let go of a lock that is the parent's, after a fork.

        Closed, not unlocked: parent and child have one lock together.
        """
        os.close(self._fd)


def is_alive(folder: Path, owner: str) -> bool:
    """Return whether the process of a lock lives; remove the file of one that died."""
    path = folder / owner
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    except OSError:
        # Another user's, say: what cannot be told counts as alive.
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        return False
    finally:
        os.close(fd)


def living(folder: Path) -> set[str]:
    """Return the owners that live; the files of others are removed."""
    names = [path.name for path in folder.iterdir() if _OWNER.fullmatch(path.name)]
    return {name for name in names if is_alive(folder, name)}
