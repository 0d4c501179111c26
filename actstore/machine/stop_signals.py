"""SIGINT and SIGTERM, for both command lines: work ends in good order, and the exit
code says which signal it was.

Inside `signals()` a signal raises Stopped where the program is. Inside `Stop.held()`,
which a training loop puts around its steps, the first one is only noted, so that the
step under way ends and is saved; one more raises Stopped after all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
TOGETHER_S = 0.5  # a Ctrl-C that torchrun passes on comes twice


class Stopped(BaseException):
    """A signal ended what was going on. saved: what was saved then, for the user, ""
    where nothing was; code: the exit code, 128 + the number; told: whether the user has
    been told already.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(saved or "interrupted")
        self.number, self.code, self.saved, self.told = (
            number,
            128 + number,
            saved,
            False,
        )


class Stop:
    """Whether a signal came. number: the first one's, None before it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._held, self._since = False, 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, look at `number` yourself. A signal raises nothing, until a second
        one comes.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Inside `held()`, around what may wait for long: raises Stopped there."""
        self._held = False
        try:
            self.check()  # one that came just before is not to wait
            yield
        finally:
            self._held = True

    def check(self) -> None:
        """Raises Stopped where a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def receive(self, number: int, _frame: Any = None) -> None:
        """The signal handler."""
        first = self.number is None
        if first:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since < TOGETHER_S:
            return
        if not (first and self._held):
            raise Stopped(number)
        _say(
            f"{signal.Signals(number).name}: ending after this step and saving; a"
            " second signal ends at once"
        )


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """Inside, SIGINT and SIGTERM go to the Stop. What is ignored (by nohup, or of a
    shell's background job) stays so.

    Only the main thread is given signals: in any other this changes nothing.
    """
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        wanted = [
            number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN
        ]
        before = {number: signal.signal(number, stop.receive) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _say(line: str) -> None:
    """Once for all processes of a run, and without Python's buffers, which a handler
    must not enter again.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    # over a progress bar, which is drawn again below
    start = "\r\x1b[2K" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode())
