"""Puts text, figures and tables on one HTML page that needs no network.

The page's template, style sheet and script lie beside this file. A content security
policy lets nothing run but that script, by its digest, and nothing be fetched. Text is
escaped by the template; data goes into the page as JSON that no tag can end.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from actstore.figures.draw_svg import draw
from actstore.figures.figure import Drawing
from actstore.figures.surroundings import style
from actstore.figures.table import Table, Value

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MOST_ROWS = 5_000  # rows of a table that a page carries
DIGITS = 7  # significant digits of the numbers that a page carries


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A part of a page.

    Attributes:
        key: Where links lead: `norms`. Letters, digits and hyphens.
        title: Its heading.
        text: What stands below the heading; a blank line begins another paragraph.
        drawings: Its figures.
        table: The data of its figures, or None. Its facts are shown above the figures.
        body: What stands below it all: markup that is escaped already (`fragment`).
    """

    key: str
    title: str
    text: str = ""
    drawings: Sequence[Drawing] = ()
    table: Table | None = None
    body: Markup | str = ""


@dataclass(frozen=True, slots=True)
class RunLegend:
    """The shared legend of a page: its runs, and the fields they are coloured by.

    Attributes:
        runs: For each run its values by field.
        fields: What runs may be coloured by: its key, its label, and whether its values
            have an order.
        chosen: The field that they are coloured by at first.
    """

    runs: Sequence[Mapping[str, Value | None]] = ()
    fields: Sequence[tuple[str, str, bool]] = ()
    chosen: str = ""

    def to_json(self) -> str:
        """Return it as the page's script reads it."""
        fields = [
            {"key": key, "label": label, "ordered": ordered}
            for key, label, ordered in self.fields
        ]
        runs = [dict(run) for run in self.runs]
        return data_text({"runs": runs, "fields": fields, "chosen": self.chosen})


@dataclass(frozen=True, slots=True)
class _Shown:
    """A section as the template takes it."""

    key: str
    title: str
    paragraphs: list[str]
    facts: list[tuple[str, str]]
    drawings: list[str]
    table: str
    n_rows: str
    body: Markup | str = field(default="")


def page(
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    legend: RunLegend | None = None,
    footer: str = "",
    more_style: str = "",
) -> str:
    """Return a whole page.

    Args:
        title: Its title.
        lead: Paragraphs below it.
        sections: Its parts, in order.
        legend: The runs that its figures share; None where there are none.
        footer: What stands at its end.
        more_style: Styles of the sections' bodies.
    """
    script = _file("page.js")
    sheet = style() + _file("page.css") + more_style
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            lead=lead,
            sections=[_shown(section) for section in sections],
            runs=None if legend is None else legend.to_json(),
            footer=footer,
            style=sheet,
            script=script,
            policy=policy(sheet, script),
        )
    )


@cache
def environment() -> Environment:
    """Return what reads templates from this folder; it escapes all text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("actstore.figures", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def policy(sheet: str, script: str) -> str:
    """Return the content security policy of a page with this style and this script."""
    return (
        f"default-src 'none'; style-src {_digest(sheet)}; script-src {_digest(script)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )


def data_text(data: Any) -> str:
    """Return data as JSON that may stand in a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Without `<` no text can end the element or begin a comment.
    return text.replace("<", "\\u003c")


def _shown(section: Section) -> _Shown:
    table = section.table
    facts = [] if table is None else list(table.facts.items())
    return _Shown(
        key=section.key,
        title=section.title,
        paragraphs=[part for part in section.text.split("\n\n") if part],
        facts=[(name, _text(value)) for name, value in facts],
        drawings=[draw(drawing, standalone=False) for drawing in section.drawings],
        table="" if table is None else _table_text(table),
        n_rows="" if table is None else _rows_shown(len(table)),
        body=section.body,
    )


def _table_text(table: Table) -> str:
    """Return a table's name and columns as JSON, its numbers shortened."""
    document = json.loads(table.to_json())
    for column in document["columns"]:
        column["values"] = column["values"][:MOST_ROWS]
        if column["type"] == "number":
            column["values"] = [_shortened(value) for value in column["values"]]
        elif column["type"] == "text":
            # Names of runs are long, and stand on many rows: each is written once.
            names = list(dict.fromkeys(column["values"]))
            number = {name: place for place, name in enumerate(names)}
            column["values"] = [number[name] for name in column["values"]]
            column["names"] = names
    return data_text({"name": table.name, "columns": document["columns"]})


def _rows_shown(n: int) -> str:
    if n > MOST_ROWS:
        return f"the first {MOST_ROWS:,} of {n:,} rows; its own files have all"
    return f"{n:,} row" if n == 1 else f"{n:,} rows"


def _shortened(value: float | None) -> float | int | None:
    if value is None:
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _file(name: str) -> str:
    return files("actstore.figures").joinpath(name).read_text("utf-8")
