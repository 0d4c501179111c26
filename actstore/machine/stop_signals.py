"""SIGINT and SIGTERM, for both command lines.

Work ends in good order, and the exit code says which signal it was.

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
    """A signal ended what was going on.

    Attributes:
        number: The signal's.
        code: The exit code, 128 + the number.
        saved: What was saved then, for the user; "" where nothing was.
        told: Whether the user has been told already.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(saved or "interrupted")
        self.number = number
        self.code = 128 + number
        self.saved = saved
        self.told = False


class Stop:
    """Notes whether a signal came, and says when the program is to stop.

    Attributes:
        number: The first one's number, None before it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._is_held = False
        self._first_came = 0.0  # when, by the monotonic clock

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Note a first signal, and raise nothing until a second one comes.

        Inside, look at `number` where it is good to stop.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Raise Stopped at once, inside `held()`, around what may wait for long."""
        self._is_held = False
        try:
            self.check()  # one that came just before is not to wait
            yield
        finally:
            self._is_held = True

    def check(self) -> None:
        """Raise Stopped where a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def receive(self, number: int, _frame: Any = None) -> None:
        """Handle a signal."""
        is_first = self.number is None
        if is_first:
            self.number = number
            self._first_came = time.monotonic()
        elif time.monotonic() - self._first_came < TOGETHER_S:
            return
        if not is_first or not self._is_held:
            raise Stopped(number)
        _say(
            f"{signal.Signals(number).name}: ending after this step and saving; a"
            " second signal ends at once"
        )


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """Send SIGINT and SIGTERM to a Stop, for the length of a `with` block.

    A signal that is ignored (by nohup, or in a shell's background job) stays so. Only
    the main thread is given signals: in any other this changes nothing.
    """
    stop = Stop()
    handlers_before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                handlers_before[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in handlers_before.items():
            # None: a handler that was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _say(line: str) -> None:
    """Write a line to standard error, once for all processes of a run.

    Without Python's buffers, which a signal handler must not enter again.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    # Erase a progress bar, which is drawn again below the line.
    start = "\r\x1b[2K" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode())
