"""Shows the progress of a harvest or an import, and its result.

The display is a bar on a terminal, plain lines, or JSON. Importing this module loads
nothing heavy.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from actstore.harvesting.progress import Progress, Report
    from actstore.store.store import Store

# Without a terminal a line is written at most so often: it may go to a file.
REPORT_EVERY_S = 10.0
# Schedulers that read JSON lines may want to know sooner.
JSON_EVERY_S = 1.0
STARTING = "starting up"


def run_with_progress(
    work: Callable[[Report], Store],
    *,
    as_json: bool,
    counted: str = "tokens",
    note: str | None = None,
) -> None:
    """Harvest or import while showing progress, and print what came of it.

    Args:
        work: Makes the store, and calls what it is given with its progress.
        as_json: Write progress as JSON lines on standard output.
        counted: What progress is counted in.
        note: Something to say at the end.

    Raises:
        FullError: The disk is full; it says how to go on.
        Stopped: The user ended it, which is told here.
    """
    from rich.console import Console

    from actstore.errors import FullError, OthersUnfinishedError
    from actstore.machine.glibc_malloc import keep_freed_memory
    from actstore.machine.stop_signals import Stopped, signals

    keep_freed_memory()
    console = Console(stderr=True)
    began = time.monotonic()
    try:
        with (
            signals(),
            _display(console, counted, as_json=as_json) as report,
            warnings_on(console),
        ):
            store = work(report)
    except FullError as full:
        raise FullError(
            f"{full}, then run the same command again: what is committed is kept, it"
            " goes on from there"
        ) from full
    except OthersUnfinishedError as unfinished:
        # Not a failure: this worker has done what was its own.
        console.print(str(unfinished), highlight=False, markup=False)
        return
    except Stopped as stop:
        # The unit that was being written has been finished first.
        kept = "what is committed is kept; run the same command again, it goes on from"
        text = stop.saved or f"{kept} there"
        console.print("[yellow]interrupted[/]: ", end="")
        console.print(text, highlight=False, markup=False, soft_wrap=bool(stop.saved))
        stop.told = True
        raise
    manifest = store.manifest
    console.print(
        f"{store.url}: {manifest.n_rows:,} rows of {len(manifest.sites)} sites in"
        f" {manifest.n_units} units, {manifest.n_bytes / 1e6:,.1f} MB,"
        f" {time.monotonic() - began:.0f} s",
        highlight=False,
        markup=False,
    )
    if note is not None:
        console.print(f"[yellow]note[/]: {note}", highlight=False)


@contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Show HarvestWarnings on a console; the libraries' own warnings stay silent."""
    from rich.markup import escape

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        # By its name: importing the class would load more than a `--help` needs.
        if warning.category.__name__ == "HarvestWarning":
            # A path in it may hold what rich takes for markup, such as `[bold]`.
            text = escape(str(warning.message))
            console.print(f"[yellow]note[/]: {text}", highlight=False)


def _display(
    console: Console, counted: str, *, as_json: bool
) -> AbstractContextManager[Report]:
    """Return what shows progress in the way that suits whoever reads it."""
    if as_json:
        return nullcontext(JsonLines())
    if console.is_terminal:
        return progress_bar(console, counted)
    return nullcontext(PlainLines(console, counted))


@contextmanager
def progress_bar(console: Console, counted: str = "tokens") -> Iterator[Report]:
    """Give what shows progress as a bar on a terminal.

    counted: What progress is counted in.
    """
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} % {task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(STARTING, total=None, figures="")
        rate = _Rate()

        def report(progress: Progress) -> None:
            if progress.n_tokens == 0:
                bar.update(task, description=progress.stage)
                return
            figures = (
                f"{rate.per_second(progress):,.0f} {counted}/s,"
                f" unit {progress.units}/{progress.n_units},"
                f" {progress.bytes / 1e6:,.0f} MB"
            )
            bar.update(
                task,
                description=progress.stage,
                total=progress.n_tokens,
                completed=progress.tokens,
                figures=figures,
            )

        yield report


class PlainLines:
    """Shows progress as a line now and then, where there is no terminal."""

    def __init__(self, console: Console, counted: str = "tokens") -> None:
        """Print on a console; counted: what progress is counted in."""
        self._console = console
        self._counted = counted
        self._rate = _Rate()
        self._last_line = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Print a line, if the last one was long ago."""
        if progress.n_tokens == 0:
            return
        # Asked at every call, because the first one starts its clock.
        speed = self._rate.per_second(progress)
        now = time.monotonic()
        if speed == 0 or now - self._last_line < REPORT_EVERY_S:
            return
        self._last_line = now
        counted = self._counted
        seconds_left = (progress.n_tokens - progress.tokens) / speed
        self._console.print(
            f"{progress.tokens:,}/{progress.n_tokens:,} {counted}, {speed:,.0f}"
            f" {counted}/s, unit {progress.units}/{progress.n_units}"
            f" ({progress.in_flight} captured, not committed),"
            f" {progress.bytes / 1e6:,.0f} MB, {seconds_left:,.0f} s left",
            highlight=False,
        )


class JsonLines:
    """Shows progress as JSON lines on standard output, for schedulers.

    There is one object for each new stage, and one a second within a stage.
    """

    def __init__(self) -> None:
        """Write that the command is starting up."""
        self._rate = _Rate()
        self._last_stage = STARTING
        self._last_line = time.monotonic()
        self._write({"stage": STARTING})

    def __call__(self, progress: Progress) -> None:
        """Write an object, if the stage is new or the last one was long ago."""
        now = time.monotonic()
        is_new_stage = progress.stage != self._last_stage
        if not is_new_stage and now - self._last_line < JSON_EVERY_S:
            return
        self._last_line = now
        self._last_stage = progress.stage
        speed = round(self._rate.per_second(progress), 1)
        self._write({**progress._asdict(), "tokens_per_s": speed})

    def _write(self, figures: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


class _Rate:
    """Tokens per second of this call, from the first report on."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._first_tokens = 0

    def per_second(self, progress: Progress) -> float:
        """Return the rate until now; 0 at the first report, which starts the clock."""
        now = time.monotonic()
        if self._began is None:
            # Tokens of earlier calls do not count.
            self._began = now
            self._first_tokens = progress.tokens
        elapsed = now - self._began
        if elapsed <= 0:
            return 0.0
        return (progress.tokens - self._first_tokens) / elapsed
