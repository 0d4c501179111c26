"""`actstore harvest`: the command line's function. Importing it loads typer only."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import TrustAgain
from actstore.harvesting.harvest_options import Device, with_spec

if TYPE_CHECKING:
    from actstore.harvesting.worker import Progress
    from schemas.harvest import HarvestSpec

REPORT_EVERY_S = 10.0


Worker = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Be the i-th of n workers on this store, such as 3/8.",
        show_default="the only one",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Progress as JSON lines on standard output.")
]


@with_spec
def harvest_command(
    spec: Any,
    out: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Where the store goes: a folder or any fsspec URL."
        ),
    ],
    device: Device = "cpu",
    worker: Worker = None,
    as_json: AsJson = False,
) -> None:
    """Run a language model over a corpus and keep its activations. The same command
    resumes an unfinished harvest.
    """

    def run(progress: Any) -> Any:
        from actstore.harvesting.harvest import harvest

        return harvest(spec, out, device=device, worker=worker, progress=progress)

    say_if_slow(spec, device)
    run_shown(run, as_json=as_json, note=rounding(spec.tokens, spec.context))


def say_if_slow(spec: HarvestSpec, device: str) -> None:
    """One line where the model would be faster in float32."""
    from actstore.machine.half_precision import slow_here

    for option, dtype in (
        ("--model-dtype", spec.model.dtype),
        ("--autocast", spec.autocast),
    ):
        slow = slow_here(dtype, device)
        if slow is not None:
            typer.echo(f"note: {option} {dtype}: {slow}", err=True)


def rounding(tokens: int, context: int) -> str | None:
    """What is run where tokens are no whole number of contexts."""
    contexts = -(-tokens // context)
    if contexts * context == tokens:
        return None
    return (
        f"{contexts * context:,} tokens in {contexts:,} contexts of {context}"
        f" ({tokens:,} were asked)"
    )


def extend_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="A finished store.")],
    sites: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITES",
            help="More sites, on the tokens and rows that the store has.",
            show_default="none",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="More tokens of the same corpus, at the sites it has.",
            show_default="none",
        ),
    ] = None,
    trust_remote_code: TrustAgain = False,
    device: Device = "cpu",
    worker: Worker = None,
    as_json: AsJson = False,
) -> None:
    """Add sites or tokens to a finished store; it stays readable meanwhile. The same
    command resumes.
    """
    from actstore.console.counts import parse_count
    from actstore.store.open_store import open as open_store

    count = parse_count(tokens) if tokens is not None else None
    note = None if count is None else rounding(count, open_store(url).layout.context)

    def run(progress: Any) -> Any:
        from actstore.harvesting.extend import extend

        more = tuple(sites) if sites else None
        return extend(
            url,
            sites=more,
            tokens=count,
            trust_remote_code=trust_remote_code,
            device=device,
            worker=worker,
            progress=progress,
        )

    run_shown(run, as_json=as_json, note=note)


def run_shown(
    work: Callable[[Any], Any],
    *,
    as_json: bool,
    counted: str = "tokens",
    note: str | None = None,
) -> None:
    """Harvest (or import) with a bar; print what came of it. counted: what progress is
    in; note: said at its end.
    """
    from rich.console import Console

    from actstore.errors import FullError, OthersUnfinishedError
    from actstore.machine.glibc_malloc import keep_freed_memory
    from actstore.machine.stop_signals import Stopped, signals

    keep_freed_memory()
    console = Console(stderr=True)
    shown = (
        _json_lines()
        if as_json
        else (
            _bar(console, counted)
            if console.is_terminal
            else _plain_lines(console, counted)
        )
    )
    began = time.monotonic()
    try:
        with signals(), shown as report, warnings_on(console):
            report("starting up", None)
            store = work(lambda now: report(now.stage, now))
    except FullError as full:
        raise FullError(
            f"{full}, then run the same command again: what is committed is kept, it"
            " goes on from there"
        ) from full
    except OthersUnfinishedError as left:
        console.print(str(left), highlight=False, markup=False)
        return
    except Stopped as stop:  # the unit being written was finished first
        console.print(
            "[yellow]interrupted[/]: what is committed is kept; run the same command"
            " again, it goes on from there"
        )
        stop.told = True
        raise
    found = store.manifest
    console.print(
        f"{store.url}: {found.n_rows:,} rows of {len(found.sites)} sites in"
        f" {found.n_units} units, {found.n_bytes / 1e6:,.1f} MB,"
        f" {time.monotonic() - began:.0f} s",
        highlight=False,
        markup=False,
    )
    if note is not None:
        console.print(f"[yellow]note[/]: {note}", highlight=False)


Shown = Any  # a context manager that gives report(stage, Progress or None)


@contextlib.contextmanager
def _bar(console: Any, counted: str = "tokens") -> Iterator[Any]:
    """A rich progress bar for a terminal."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} % {task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting up", total=None, figures="")
        rate = _Rate()

        def report(stage: str, now: Progress | None) -> None:
            if now is None or not now.n_tokens:
                bar.update(task, description=stage)
                return
            figures = (
                f"{rate(now):,.0f} {counted}/s, unit {now.units}/{now.n_units},"
                f" {now.bytes / 1e6:,.0f} MB"
            )
            bar.update(
                task,
                description=stage,
                total=now.n_tokens,
                completed=now.tokens,
                figures=figures,
            )

        yield report


@contextlib.contextmanager
def _plain_lines(console: Any, counted: str = "tokens") -> Iterator[Any]:
    """A line now and then, where there is no terminal."""
    rate, last = _Rate(), time.monotonic()

    def report(_stage: str, now: Progress | None) -> None:
        nonlocal last
        if now is None or not now.n_tokens:
            return
        speed = rate(now)  # at every report: the first one starts its clock
        if not speed or time.monotonic() - last < REPORT_EVERY_S:
            return
        last = time.monotonic()
        left = (now.n_tokens - now.tokens) / speed
        console.print(
            f"{now.tokens:,}/{now.n_tokens:,} {counted}, {speed:,.0f} {counted}/s, unit"
            f" {now.units}/{now.n_units} ({now.in_flight} captured, not committed),"
            f" {now.bytes / 1e6:,.0f} MB, {left:,.0f} s left",
            highlight=False,
        )

    yield report


@contextlib.contextmanager
def _json_lines() -> Iterator[Any]:
    """One JSON object per second at most, for schedulers."""
    rate, last, shown = _Rate(), 0.0, ""

    def report(stage: str, now: Progress | None) -> None:
        nonlocal last, shown
        if stage == shown and time.monotonic() - last < 1:
            return
        last, shown = time.monotonic(), stage
        figures = (
            {**now._asdict(), "tokens_per_s": round(rate(now), 1)}
            if now
            else {"stage": stage}
        )
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()

    yield report


class _Rate:
    """Tokens per second of this run, from the first report with tokens on."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def __call__(self, now: Progress) -> float:
        if self._start is None:
            self._start = (time.monotonic(), now.tokens)
        elapsed = time.monotonic() - self._start[0]
        return (now.tokens - self._start[1]) / elapsed if elapsed > 0 else 0.0


@contextlib.contextmanager
def warnings_on(console: Any) -> Iterator[None]:
    """HarvestWarnings in the console's words; the libraries' own warnings stay silent."""
    import warnings

    from rich.markup import escape  # a path may hold `[bold]`

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if one.category.__name__ == "HarvestWarning":
            console.print(
                f"[yellow]note[/]: {escape(str(one.message))}", highlight=False
            )
