"""Shows the progress of a copy on standard error: a bar, or a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from actstore.sharing.copied_objects import CopyProgress, Report

# Without a terminal a line is written at most so often: it may go to a file.
REPORT_EVERY_S = 10.0


def display(console: Console) -> AbstractContextManager[Report]:
    """Return what shows progress in the way that suits whoever reads it."""
    if console.is_terminal:
        return _bar(console)
    return nullcontext(PlainLines(console))


@contextmanager
def _bar(console: Console) -> Iterator[Report]:
    """Give what shows progress as a bar, with the time that is left."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("copying", total=None)

        def report(progress: CopyProgress) -> None:
            # What was there already took no time, and would make the rest look quick.
            skipped = progress.skipped_bytes
            bar.update(
                task,
                total=progress.n_bytes - skipped,
                completed=progress.bytes - skipped,
            )

        yield report


class PlainLines:
    """Shows progress as a line now and then, where there is no terminal."""

    def __init__(self, console: Console) -> None:
        """Print on a console."""
        self._console = console
        self._began = time.monotonic()
        self._last_line = self._began

    def __call__(self, progress: CopyProgress) -> None:
        """Print a line, if the last one was long ago."""
        now = time.monotonic()
        if now - self._last_line < REPORT_EVERY_S:
            return
        self._last_line = now
        speed = (progress.bytes - progress.skipped_bytes) / (now - self._began)
        n_left = progress.n_bytes - progress.bytes
        left = f"{n_left / speed:,.0f} s left" if speed else "time left not known"
        self._console.print(
            f"{progress.bytes / 1e6:,.0f} of {progress.n_bytes / 1e6:,.0f} MB,"
            f" {progress.objects:,} objects ({progress.skipped_objects:,} were there),"
            f" {speed / 1e6:,.1f} MB/s, {left}",
            highlight=False,
        )
