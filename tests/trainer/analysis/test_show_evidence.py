"""Tables in the terminal: which columns a line has room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from actstore.figures.table import Column, Table
from trainer.analysis import show_evidence
from trainer.analysis.show_evidence import show

RUNS = ["first run", "second run", "first run", "second run"]
SITES = ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]


def table_of(*columns: Column) -> Table:
    return Table("some", "Some table", "What it says.", columns)


def wide_table() -> Table:
    numbers = [Column(f"figure_{i}", np.arange(4) + i / 8) for i in range(20)]
    return table_of(
        Column("run", RUNS),
        # says nothing that the run does not
        Column("group", ["alpha, l0 4", "beta, l0 4"] * 2, "same but for the seed"),
        Column("site", SITES),
        *numbers,
    )


def shown_at(
    width: int,
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    monkeypatch.setattr(show_evidence, "WIDTH", width)
    show(table, None)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 80, 140])
def test_lines_fit_and_begin_with_what_tells_rows_apart(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = wide_table()
    lines = shown_at(width, table, monkeypatch, capsys)
    drawn = [line for line in lines if line.startswith(("┏", "┃", "┡", "│", "└"))]
    assert max(map(len, drawn)) <= width
    rows = [line.strip("│").split("│") for line in drawn if line.startswith("│")]
    # A line of the table for each of its rows: nothing is folded.
    assert [row[0].strip() for row in rows] == RUNS
    assert [row[1].strip() for row in rows] == SITES
    (more,) = (line for line in lines if line.startswith("more columns: "))
    assert more.endswith("; --json or --out has all")
    left_out = more.removeprefix("more columns: ").partition(";")[0].split(", ")
    assert left_out[0] == "group"
    # Numbers are shown as the table orders them, and each is shown or named.
    n_shown = len(rows[0]) - 2
    assert n_shown > 0
    assert left_out[1:] == [f"figure_{i}" for i in range(n_shown, 20)]


def test_all_columns_are_shown_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = table_of(*wide_table().columns[:4])
    lines = shown_at(80, small, monkeypatch, capsys)
    assert any("alpha, l0 4" in line for line in lines)
    assert not any("more columns" in line for line in lines)


@pytest.mark.parametrize("values", [["x" * 200], []])
def test_the_first_column_is_always_there(
    values: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    numbers = Column("figure", np.zeros(len(values)))
    lines = shown_at(50, table_of(Column("name", values), numbers), monkeypatch, capsys)
    assert "".join(lines).count("x") == 200 * len(values)
    assert any("name" in line for line in lines)
    assert all(len(line) <= 50 for line in lines if line.startswith("│"))
