"""Keeps what analyses found: a table as JSON, Parquet and CSV, its figures as SVG.

A folder of evidence holds for each table NAME.json, NAME.parquet, NAME.csv, and an SVG
for each of its figures. `trainer report --with FOLDER` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from actstore.figures.draw_svg import draw
from actstore.figures.figure import Drawing
from actstore.figures.table import MOST_BYTES, Table
from actstore.format.storage import Storage
from trainer.errors import RunError

# From the name of a table to the function that draws it. Pages show tables in this
# order.
PLOTS: dict[str, str] = {}


def figures_of(table: Table) -> tuple[Drawing, ...]:
    """Return the figures of a table; none where its analysis draws none."""
    path = PLOTS.get(table.name)
    if path is None:
        return ()
    module, _, function = path.partition(":")
    plot: Callable[[Table], Sequence[Drawing]] = getattr(
        import_module(module), function
    )
    return tuple(plot(table))


def write_evidence(table: Table, folder: str) -> None:
    """Write a table and its figures into a folder; the JSON comes last."""
    storage = Storage(folder)
    for figure in figures_of(table):
        storage.put(f"{figure.name}.svg", draw(figure).encode())
    storage.put(f"{table.name}.parquet", table.to_parquet())
    storage.put(f"{table.name}.csv", table.to_csv().encode())
    storage.put(f"{table.name}.json", table.to_json().encode())


def read_evidence(folder: str) -> list[Table]:
    """Return the tables of a folder, in the order of pages.

    Raises:
        RunError: There is none.
        SpecError: A file is no table.
    """
    storage = Storage(folder)
    names = [name for name in storage.list("") if name.endswith(".json")]
    tables = []
    for name in names:
        if "/" in name:
            continue
        data = storage.read(name, MOST_BYTES)
        tables.append(Table.from_json(data, f"{folder}/{name}"))
    if not tables:
        raise RunError(
            f"{folder}: wanted a folder that `trainer analyze ... --out` wrote, with"
            " NAME.json for each table; there is none"
        )
    order = list(PLOTS)
    last = len(order)
    return sorted(
        tables,
        key=lambda table: (
            order.index(table.name) if table.name in order else last,
            table.name,
        ),
    )
