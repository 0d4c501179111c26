"""Shows where training is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from trainer.training.step_loop import Progress, Report

LINE_EVERY_S = 20.0
BAR = 20  # characters of the bar
# Characters of the percentage and the time left, which are always shown.
BESIDE = len(" 100 % 123:45:00 ")
# Which figures are kept where there is no room for all, the most wanted first.
BY_IMPORTANCE = ("FVU", "L0", "rows/s", "loss", "dead", "stall")


@contextmanager
def shown(console: Any) -> Iterator[Report]:
    """Inside the `with`, show the progress that the function it gives is told.

    Args:
        console: A rich Console; one that is `quiet` shows nothing.
    """
    if console.quiet:
        yield lambda _now: None
    elif console.is_terminal:
        with bar(console) as (_, report):
            yield report
    else:
        with lines(console) as report:
            yield report


@contextmanager
def bar(console: Any) -> Iterator[tuple[Bar, Report]]:
    """Inside the `with`, show progress as a bar.

    Where the terminal is narrow, figures are left out, never the bar, the percentage or
    the time left.
    """
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBar

    columns = (
        BarColumn(max(1, min(BAR, console.width - BESIDE))),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figures]}"),
    )
    rich_bar = RichBar(
        *columns,
        console=console,
        transient=True,
        # Steps may be slow, so the speed is that of the last ten minutes.
        speed_estimate_period=600,
    )
    with rich_bar:
        task = rich_bar.add_task("training", total=None, figures="training")

        def report(now: Progress) -> None:
            text = figures(now, console.width - BAR - BESIDE)
            rich_bar.update(task, completed=now.step, total=now.steps, figures=text)

        yield rich_bar, report


@contextmanager
def lines(console: Any, every_s: float | None = None) -> Iterator[Report]:
    """Inside the `with`, show progress as lines.

    There is one after the first step, one every so many seconds, and one at the end.
    They come from a thread, since a step, or the wait for data, may take long.
    """
    progress_lines = _Lines(console)
    ended = threading.Event()
    interval = LINE_EVERY_S if every_s is None else every_s

    def print_now_and_then() -> None:
        while not ended.wait(interval):
            progress_lines.print_line()

    thread = threading.Thread(
        target=print_now_and_then, name="progress-lines", daemon=True
    )
    thread.start()
    try:
        yield progress_lines.report
    finally:
        ended.set()
        thread.join()
        progress_lines.print_last()


class _Lines:
    """Prints the lines, and estimates the time left."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._began = time.monotonic()
        self._now: Progress | None = None
        # When the first step had been taken, and its number: that step may take long,
        # so it does not count for the time left.
        self._first: tuple[float, int] | None = None
        self._printed_step = -1

    def report(self, now: Progress) -> None:
        """Note where training is."""
        self._now = now
        if self._first is None:
            self._first = (time.monotonic(), now.step)
            self.print_line()

    def print_line(self) -> None:
        """Print where training is."""
        now = self._now
        if now is None:
            waited = time.monotonic() - self._began
            self._print(f"training: before the first step, {waited:.0f} s")
            return
        self._printed_step = now.step
        share = now.step / max(now.steps, 1)
        parts = [
            f"training: step {now.step:,}/{now.steps:,} ({share:.0%})",
            figures(now),
            self._time_left(now),
        ]
        self._print(", ".join(part for part in parts if part))

    def print_last(self) -> None:
        """Print where training has ended, unless that has been printed."""
        if self._now is not None and self._now.step != self._printed_step:
            self.print_line()

    def _time_left(self, now: Progress) -> str:
        assert self._first is not None
        first_at, first_step = self._first
        seconds = time.monotonic() - first_at
        steps = now.step - first_step
        steps_left = now.steps - now.step
        if not steps or not steps_left:
            return ""
        return f"{duration(steps_left * seconds / steps)} left"

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def figures(now: Progress, width: int | None = None) -> str:
    """Return the figures of the last interval; "" before the first has ended.

    Args:
        now: Where training is.
        width: How many characters there is room for; None for any number.
    """
    if not now.last:
        return ""
    speed = {
        "rows/s": f"{now.rows_per_s:,.0f} rows/s",
        "stall": f"stall {now.stall:.1%}",
    }
    intervals = list(now.last.values())
    if len(intervals) == 1:
        interval = intervals[0]
        quality = {
            "loss": f"loss {interval.loss:.4g}",
            "L0": f"L0 {interval.l0:.1f}",
            "FVU": f"FVU {interval.fvu:.3f}",
            "dead": f"dead {interval.dead}",
        }
    else:
        fvus = [interval.fvu for interval in intervals]
        quality = {
            "loss": f"{len(intervals)} SAEs",
            "FVU": f"FVU {min(fvus):.3f} to {max(fvus):.3f}",
        }
    return _fitting({**quality, **speed}, width)


def _fitting(parts: dict[str, str], width: int | None) -> str:
    """Return as many of the parts as there is room for, in their order."""
    kept: dict[str, str] = {}
    for name in BY_IMPORTANCE:
        with_one_more = {
            key: part for key, part in parts.items() if key in kept or key == name
        }
        if width is None or len(", ".join(with_one_more.values())) <= width:
            kept = with_one_more
    return ", ".join(kept.values())


def duration(seconds: float) -> str:
    """Return a time as 1:02:03, or as 2:03 where it is less than an hour."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds_left:02}"
    return f"{minutes}:{seconds_left:02}"
