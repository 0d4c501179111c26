"""A table comes back as it was written, and what is none is refused."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import SpecError
from actstore.figures.table import Column, Table

NUMBERS = st.floats(width=64) | st.just(math.nan)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    n = draw(st.integers(0, 5))
    columns = [
        Column(
            "cosine", np.array(draw(st.lists(NUMBERS, min_size=n, max_size=n))), "max"
        ),
        Column(
            "latent",
            np.array(
                draw(st.lists(st.integers(-(2**62), 2**62), min_size=n, max_size=n)),
                dtype=np.int64,
            ),
            unit="number",
        ),
        Column("site", draw(st.lists(TEXT, min_size=n, max_size=n))),
    ]
    facts = draw(st.dictionaries(TEXT, NUMBERS | st.integers(-9, 9) | TEXT, max_size=3))
    return Table("stitch", draw(TEXT), draw(TEXT), tuple(columns), facts)


def same(a: object, b: object) -> bool:
    """Equal, where NaN and what is not finite stand for each other."""
    if isinstance(a, float) and not math.isfinite(a):
        return isinstance(b, float) and math.isnan(b)
    return a == b


@settings(deadline=None)  # a library is loaded at the first example
@given(tables())
def test_json_comes_back(table: Table) -> None:
    again = Table.from_json(table.to_json())
    assert again.names == table.names
    assert (again.name, again.title, again.text) == (
        table.name,
        table.title,
        table.text,
    )
    for row, row_again in zip(table.rows(), again.rows(), strict=True):
        assert all(map(same, row, row_again))
    assert all(same(table.facts[key], again.facts[key]) for key in table.facts)
    assert [c.heading for c in again.columns] == [c.heading for c in table.columns]


@settings(deadline=None)  # a library is loaded at the first example
@given(tables())
def test_parquet_and_csv_hold_the_same(table: Table) -> None:
    read = pq.read_table(pa.BufferReader(table.to_parquet()))
    assert tuple(read.column_names) == table.names
    assert read.column("latent").to_pylist() == table["latent"].tolist()
    assert read.column("site").to_pylist() == list(table["site"])
    assert json.loads(read.schema.metadata[b"actstore"])["title"] == table.title
    if any(character in "\r\n\0" for site in table["site"] for character in site):
        return  # csv quotes them, but readers differ on lone line ends
    lines = list(csv.reader(io.StringIO(table.to_csv())))
    assert lines[0] == list(table.names)
    assert [line[2] for line in lines[1:]] == list(table["site"])


def test_columns_of_one_length_and_different_names() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Table("t", "", "", (Column("a", np.arange(2)), Column("b", np.arange(3))))
    with pytest.raises(ValueError, match="one name"):
        Table("t", "", "", (Column("a", np.arange(2)), Column("a", np.arange(2))))
    with pytest.raises(KeyError, match="no column 'c'"):
        Table("t", "", "", (Column("a", np.arange(2)),))["c"]


GOOD = json.loads(
    Table("t", "T", "x", (Column("a", np.arange(2)),), {"p": 0.5}).to_json()
)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": None},
        {"columns": [1]},
        {"name": 3},
        {"facts": {"p": [1]}},
        {"facts": 3},
        {"columns": [{**GOOD["columns"][0], "values": ["x", 1]}]},
        {"columns": [{**GOOD["columns"][0], "values": {"a": 1}}]},
        {"columns": [{**GOOD["columns"][0], "type": "object"}]},
        {"columns": [{**GOOD["columns"][0], "values": [2**70, 1]}]},
        {"columns": [GOOD["columns"][0], GOOD["columns"][0]]},
    ],
)
def test_what_is_no_table_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="wanted a table as an analysis writes it"):
        Table.from_json(json.dumps({**GOOD, **change}), "folder/t.json")


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, json.dumps({**GOOD, "title": "\ud800"})],
)
def test_deep_nesting_and_half_characters_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="wanted a table"):
        Table.from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", "3", b"\xff"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="run the analysis again"):
        Table.from_json(text)
