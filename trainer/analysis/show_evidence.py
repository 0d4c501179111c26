"""Shows a table in the terminal and writes it where the user wants it."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from actstore.figures.table import Table, Value

MOST_ROWS = 24  # rows that the terminal shows

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
    lines = Lines()
    for column in table.columns:
        lines.add_column(
            escape(column.heading), justify="left" if column.is_text else "right"
        )
    for number, row in enumerate(table.rows()):
        if number == MOST_ROWS:
            break
        lines.add_row(*(escape(_shown(value)) for value in row))
    console.print(lines)
    if len(table) > MOST_ROWS:
        left = len(table) - MOST_ROWS
        console.print(f"and {left:,} more rows (--json or --out has all)")


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
