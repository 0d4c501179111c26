"""How training shows where it is: a bar on a terminal, a line now and then elsewhere."""

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
BAR = 20  # characters
# percentage and time left, which are always shown, like the bar
BESIDE = len(" 100 % 123:45:00 ")
# where there is no room for all: in this order
KEPT_LAST = ("FVU", "L0", "rows/s", "loss", "dead", "stall")


@contextmanager
def shown(console: Any) -> Iterator[Report]:
    """Gives a function to report progress to. console: a rich Console; one that is
    `quiet` shows nothing.
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
    """A rich bar; where the terminal is narrow figures are left out, never the bar,
    percentage or time left.
    """
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBar

    columns = (
        BarColumn(max(1, min(BAR, console.width - BESIDE))),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figures]}"),
    )
    # steps may be slow
    with RichBar(
        *columns, console=console, transient=True, speed_estimate_period=600
    ) as shown:
        task = shown.add_task("training", total=None, figures="training")

        def report(now: Progress) -> None:
            told = figures(now, console.width - BAR - BESIDE)
            shown.update(task, completed=now.step, total=now.steps, figures=told)

        yield shown, report


@contextmanager
def lines(console: Any, every_s: float | None = None) -> Iterator[Report]:
    """A line with the first step, every so many seconds, whatever training is at, and
    at the end.
    """
    told, ended = _Lines(console), threading.Event()

    def tell() -> None:
        while not ended.wait(LINE_EVERY_S if every_s is None else every_s):
            told.line()

    thread = threading.Thread(target=tell, name="progress-lines", daemon=True)
    thread.start()
    try:
        yield told.report
    finally:
        ended.set()
        thread.join()
        told.last()


class _Lines:
    """What the lines say."""

    def __init__(self, console: Any) -> None:
        self._console, self._began = console, time.monotonic()
        self._now: Progress | None = None
        self._first: tuple[float, int] | None = None
        self._told = -1

    def report(self, now: Progress) -> None:
        self._now = now
        if self._first is None:  # behind the first step, which may take long for itself
            self._first = (time.monotonic(), now.step)
            self.line()

    def line(self) -> None:
        now = self._now
        if now is None:
            self._print(
                "training: before the first step,"
                f" {time.monotonic() - self._began:.0f} s"
            )
            return
        self._told = now.step
        parts = [
            (
                f"training: step {now.step:,}/{now.steps:,}"
                f" ({now.step / max(now.steps, 1):.0%})"
            ),
            figures(now),
        ]
        self._print(", ".join(part for part in [*parts, self._left(now)] if part))

    def last(self) -> None:
        """Unless it has been said."""
        if self._now is not None and self._now.step != self._told:
            self.line()

    def _left(self, now: Progress) -> str:
        assert self._first is not None
        seconds, steps = time.monotonic() - self._first[0], now.step - self._first[1]
        left = now.steps - now.step
        return f"{duration(left * seconds / steps)} left" if steps and left else ""

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def figures(now: Progress, width: int | None = None) -> str:
    """What the last interval gave, at most `width` characters of it; nothing before the
    first.
    """
    if not now.last:
        return ""
    parts = {
        "rows/s": f"{now.rows_per_s:,.0f} rows/s",
        "stall": f"stall {now.stall:.1%}",
    }
    if len(now.last) == 1:
        one = next(iter(now.last.values()))
        own = {
            "loss": f"loss {one.loss:.4g}",
            "L0": f"L0 {one.l0:.1f}",
            "FVU": f"FVU {one.fvu:.3f}",
        }
        parts = {**own, "dead": f"dead {one.dead}", **parts}
    else:
        fvus = [one.fvu for one in now.last.values()]
        parts = {
            "loss": f"{len(now.last)} SAEs",
            "FVU": f"FVU {min(fvus):.3f} to {max(fvus):.3f}",
            **parts,
        }
    return _fitting(parts, width)


def _fitting(parts: dict[str, str], width: int | None) -> str:
    """As many of the parts as there is room for, in their order."""
    kept: dict[str, str] = {}
    for name in KEPT_LAST:
        more = {key: part for key, part in parts.items() if key in kept or key == name}
        if width is None or len(", ".join(more.values())) <= width:
            kept = more
    return ", ".join(kept.values())


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
