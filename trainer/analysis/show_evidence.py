"""Shows a table in the terminal and writes it where the user wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from textwrap import wrap
from typing import Annotated

import typer

from actstore.figures.table import Table, Value

MOST_ROWS = 24  # rows that the terminal shows
WIDTH = 160  # characters of a line where there is no terminal
HEADING_LINES = 4  # lines that a heading may take
BETWEEN = 3  # characters between columns

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
    cells = [
        [_shown(value) for value in row] for row in islice(table.rows(), MOST_ROWS)
    ]
    widths = _widths(table, cells)
    places = _places(table, widths, console.width - 1)
    lines = Lines()
    for place in places:
        column = table.columns[place]
        lines.add_column(
            escape(column.heading),
            justify="left" if column.is_text else "right",
            overflow="fold",
            width=min(widths[place], console.width - 1 - BETWEEN),
        )
    for row in cells:
        lines.add_row(*(escape(row[place]) for place in places))
    console.print(lines)
    left_out = [name for place, name in enumerate(table.names) if place not in places]
    if left_out:
        typer.echo(f"more columns: {', '.join(left_out)}; --json or --out has all")
    if len(table) > MOST_ROWS:
        left = len(table) - MOST_ROWS
        console.print(f"and {left:,} more rows (--json or --out has all)")


def _widths(table: Table, cells: list[list[str]]) -> list[int]:
    """Return the width of each column: that of its cells, headings in few lines."""
    widths = []
    for place, column in enumerate(table.columns):
        width = max(len(word) for word in column.heading.split())
        while len(wrap(column.heading, width)) > HEADING_LINES:
            width += 1
        widths.append(max(width, *(len(row[place]) for row in cells), 1))
    return widths


def _places(table: Table, widths: list[int], room: int) -> list[int]:
    """Return the columns that a line has room for, in the order of the table.

    Texts that tell rows apart come first, then numbers, then texts that say no more.
    """
    places: list[int] = []
    for place in sorted(range(len(widths)), key=_ranks(table).__getitem__):
        needed = widths[place] + BETWEEN
        if needed <= room or not places:
            places.append(place)
            room -= needed
    return sorted(places)


def _ranks(table: Table) -> list[int]:
    """Return for each column how soon it is shown: 0 first, 2 last.

    Of run, group and site, for example, the group says nothing that the run does not.
    """
    ranks = []
    names: list[Sequence[str]] = []
    n_told_apart = 0
    for column in table.columns:
        if not column.is_text:
            ranks.append(1)
            continue
        n_distinct = len(set(zip(*names, column.values, strict=True)))
        tells_more = n_distinct > max(1, n_told_apart) or not names
        ranks.append(0 if tells_more else 2)
        if tells_more:
            names.append([str(value) for value in column.values])
            n_told_apart = n_distinct
    return ranks


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
