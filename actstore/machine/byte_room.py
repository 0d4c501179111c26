"""A bound on the bytes that threads hold at a time."""

from __future__ import annotations

import threading


class ByteRoom:
    """Bytes that may be taken; who takes waits until there is room.

    Attributes:
        closed: Whether nothing is given any more.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._taken = 0
        self._changed = threading.Condition()
        self.closed = False

    def take(self, n_bytes: int) -> bool:
        """Take bytes, and return True; False once it is closed.

        More than there is room for at all is given when nothing else is taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._fits(n_bytes))
            if not self.closed:
                self._taken += n_bytes
            return not self.closed

    def give_back(self, n_bytes: int) -> None:
        """Make room for others."""
        with self._changed:
            self._taken -= n_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Give nothing any more; nobody waits on."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _fits(self, n_bytes: int) -> bool:
        return not self._taken or self._taken + n_bytes <= self._most
