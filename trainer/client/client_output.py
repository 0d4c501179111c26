"""Prints what the service says, as text or as JSON. Importing this loads typer only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from schemas.service import Estimate, RunEvent, RunProgress, ServiceRun

WIDTH = 160  # of a table that goes into a pipe, in characters
WIDEST_CELL = 40


def say(text: str) -> None:
    """Print a line; names and errors are others' texts."""
    from actstore.console.printable import one_line

    typer.echo(one_line(text))


def print_json(values: list[Any]) -> None:
    """Print records as a list of JSON."""
    import json

    plain = [value.model_dump(mode="json") for value in values]
    typer.echo(json.dumps(plain, indent=1))


def show_changed(run: ServiceRun, as_json: bool) -> None:
    """Print a run that was changed: a line, or JSON."""
    if as_json:
        typer.echo(run.to_json(), nl=False)
    else:
        say(f"{run.id}  {run.name}  {run.state}")


def show_event(event: RunEvent, name: str | None, as_json: bool) -> None:
    """Print an event as a line: of text, or of JSON."""
    if as_json:
        typer.echo(event.model_dump_json())
        return
    words = [event.time, *([] if name is None else [name]), event.kind]
    if event.progress is not None:
        words.append(_progress(event.progress))
    elif event.text:
        words.append(event.text)
    say("  ".join(words))


def _progress(now: RunProgress) -> str:
    steps = f"{now.step:,}" if now.steps is None else f"{now.step:,} of {now.steps:,}"
    return (
        f"step {steps}  loss {now.loss:.4g}  L0 {now.l0:.4g}  FVU {now.fvu:.4g}"
        f"  {now.rows_per_s:,.0f} rows/s"
    )


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Print what training would take: in lines, or as JSON."""
    if as_json:
        typer.echo(estimate.to_json(), nl=False)
        return
    n, passes = len(estimate.runs), estimate.passes
    say(f"runs      {n}: {', '.join(estimate.runs)}")
    say(f"rows      {estimate.rows:,} for each, read {passes} time{'s'[: passes > 1]}")
    fits = "fits on a slot" if estimate.fits else "fits on no slot: it would not begin"
    say(f"memory    {estimate.memory_bytes / 1e9:,.2f} GB at most; {fits}")
    seconds = estimate.seconds
    time = "not known: nothing like it was trained yet"
    say(f"time      {time if seconds is None else f'{seconds:,.0f} s of training'}")


def show_runs(runs: list[ServiceRun]) -> None:
    """Print runs as a table, and why those wait or failed that do."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from actstore.console.printable import shortened

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("id", "name", "user", "state", "steps", "FVU", "L0", "created"):
        is_number = title in {"steps", "FVU", "L0"}
        table.add_column(title, justify="right" if is_number else "left")
    for run in runs:
        table.add_row(*(shortened(cell, WIDEST_CELL) for cell in _cells(run)))
    # Names are others' texts: `[red]` and `:smile:` are no markup.
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for run in runs:
        why = run.error or run.waits_for
        if why:
            say(f"{run.id}: {why}")


def _cells(run: ServiceRun) -> list[str]:
    now = run.progress
    figures = ["-", "-", "-"]
    if now is not None:
        of = "" if now.steps is None else f"/{now.steps:,}"
        figures = [f"{now.step:,}{of}", f"{now.fvu:.4g}", f"{now.l0:.4g}"]
    return [run.id, run.name, run.user, run.state, *figures, run.created]
