"""One process at a time writes a run.

Two that resumed the same run would mix their records and checkpoints. A lock on the
run's folder prevents that on one machine; the system frees it when the process ends,
however it ends. Elsewhere than on a local disk there are no such locks, and nothing is
prevented.
"""

from __future__ import annotations

import contextlib
import errno
import os

from actstore.format.storage import Storage
from trainer.errors import RunLockedError

# What a file system says that has no locks, or none on folders.
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES}


class RunLock:
    """The lock on a run's folder; free until `take`, and again after `free`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._descriptor: int | None = None

    def take(self) -> None:
        """Lock the folder, which must be there if it is local.

        Raises:
            RunLockedError: Another process writes the run.
        """
        folder = self._storage.local
        if folder is None or self._descriptor is not None:
            return
        try:
            import fcntl
        except ImportError:  # Windows has no locks on folders
            return
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.ExitStack() as if_not_locked:
            if_not_locked.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLockedError(
                    f"{self._storage.url}: another process is training this run; wait"
                    " until it ends, or stop it, and then resume"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return
            if_not_locked.pop_all()
            self._descriptor = descriptor

    def free(self) -> None:
        """Let other processes write the run."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
