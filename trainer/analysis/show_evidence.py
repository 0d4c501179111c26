"""Shows a table in the terminal and writes it where the user wants it."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.figures.table import Table, Value

if TYPE_CHECKING:
    from rich.console import JustifyMethod

MOST_ROWS = 24  # rows that the terminal shows
WIDTH = 160  # characters of a line where there is no terminal

Out = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Write the table (JSON, Parquet, CSV) and its figures (SVG) into it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole table as JSON.")]


def show(table: Table, out: str | None, as_json: bool = False) -> None:
    """Print a table, and write it with its figures where a folder is given."""
    if out is not None:
        from trainer.analysis.evidence import write_evidence

        write_evidence(table, out)
    if as_json:
        typer.echo(table.to_json())
        return
    _print(table)
    if out is not None:
        typer.echo(f"written: {out}/{table.name}.json, .parquet, .csv and figures")


def _print(table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Lines

    console = Console(highlight=False)
    console.print(f"[bold]{escape(table.title)}[/bold]")
    console.print(escape(table.text))
    for name, value in table.facts.items():
        console.print(f"{escape(name)}: {escape(_shown(value))}")
    if not console.is_terminal:
        # A pipe or a file has no width of its own.
        console.width = WIDTH
    shown = [
        [_shown(value) for value in row] for row in islice(table.rows(), MOST_ROWS)
    ]
    lines = Lines()
    room = console.width - 1
    left_out = []
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in shown]
        words = column.heading.split()
        # With two spaces and a line between columns.
        room -= max(len(text) for text in ("", *words, *cells)) + 3
        if room < 0 and place:
            left_out = list(table.names[place:])
            break
        justify: JustifyMethod = "left" if column.is_text else "right"
        lines.add_column(escape(column.heading), justify=justify, overflow="fold")
    for row in shown:
        lines.add_row(*(escape(cell) for cell in row[: len(lines.columns)]))
    console.print(lines)
    if left_out:
        typer.echo(f"and columns {', '.join(left_out)} (--json or --out has all)")
    if len(table) > MOST_ROWS:
        left = len(table) - MOST_ROWS
        console.print(f"and {left:,} more rows (--json or --out has all)")


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
