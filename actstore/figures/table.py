"""The table that an analysis computes, written as JSON, Parquet and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SpecError

Value = str | int | float
MOST_BYTES = 1 << 30  # bytes of JSON that are read


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column.

    Attributes:
        name: Its name in files, such as `max_cosine`.
        values: Numbers [n], or as many texts.
        label: What heads it on a page; its name where empty.
        unit: The unit of its numbers; empty where they have none.
    """

    name: str
    values: NDArray[Any] | Sequence[str]
    label: str = ""
    unit: str = ""

    @property
    def heading(self) -> str:
        """The heading of the column, with its unit."""
        label = self.label or self.name.replace("_", " ")
        return f"{label} ({self.unit})" if self.unit else label

    @property
    def is_text(self) -> bool:
        """True where the values are texts."""
        return not isinstance(self.values, np.ndarray)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The result of an analysis: columns of one length, and single figures.

    Attributes:
        name: Its name in files, and that of the analysis: `stitch_compare`.
        title: What it is called on a page.
        text: One or two sentences, plain text: what it shows and how to read it.
        columns: The columns, all of one length.
        facts: Single figures beside the rows, by what they are called on a page: a
            slope, a p-value, the number of seeds.
    """

    name: str
    title: str
    text: str
    columns: tuple[Column, ...]
    facts: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError where columns differ in length, or two have one name."""
        lengths = {len(column.values) for column in self.columns}
        if len(lengths) > 1:
            raise ValueError(f"{self.name}: its columns differ in length: {lengths}")
        if len(set(self.names)) < len(self.columns):
            raise ValueError(f"{self.name}: two columns have one name: {self.names}")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.columns[0].values) if self.columns else 0

    def __getitem__(self, name: str) -> Any:
        """Return the values of the column of a name: an array, or a list of texts."""
        return self.column(name).values

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Return the column of a name; KeyError where there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name}: no column {name!r} among {self.names}")

    def rows(self) -> Iterator[tuple[Value, ...]]:
        """Yield the rows, as Python's own numbers and texts."""
        yield from zip(*(_plain(column.values) for column in self.columns), strict=True)

    def to_json(self) -> str:
        """Return the table as JSON: title, text, facts, and the columns by name.

        Numbers that are not finite are `null`; those of a column of integers stay
        integers.
        """
        document = {
            "name": self.name,
            "title": self.title,
            "text": self.text,
            "facts": {key: _finite(value) for key, value in self.facts.items()},
            "columns": [
                {
                    "name": column.name,
                    "label": column.label,
                    "unit": column.unit,
                    "type": _type_of(column),
                    "values": [_finite(value) for value in _plain(column.values)],
                }
                for column in self.columns
            ],
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the table") -> Table:
        """Return the table that `to_json` wrote; `null` becomes NaN.

        Args:
            text: The JSON.
            where: Its path or URL, for messages.

        Raises:
            SpecError: It is no such table.
        """
        try:
            document = json.loads(text)
            columns = tuple(_column(column) for column in document["columns"])
            facts = {
                str(key): math.nan if value is None else _fact(value)
                for key, value in document["facts"].items()
            }
            name, title, about = (
                _text(document[key]) for key in ("name", "title", "text")
            )
            return cls(name, title, about, columns, facts)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise SpecError(
                f"{where}: wanted a table as an analysis writes it (NAME.json), got"
                f" something else ({error}); run the analysis again"
            ) from None

    def to_csv(self) -> str:
        """Return the table as CSV, with the columns' names as its first line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.names)
        writer.writerows(self.rows())
        return text.getvalue()

    def to_parquet(self) -> bytes:
        """Return the table as Parquet, with title, text and facts as metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = [pa.array(column.values) for column in self.columns]
        about = json.loads(self.to_json())
        del about["columns"]
        metadata = {"actstore": json.dumps(about, ensure_ascii=False)}
        table = pa.table(arrays, names=list(self.names)).replace_schema_metadata(
            metadata
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return bytes(sink.getvalue())


def _plain(values: Any) -> list[Value]:
    """Return values as Python's own."""
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _finite(value: Any) -> Any:
    """Return a value for JSON, which has no NaN and no infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _type_of(column: Column) -> str:
    if not isinstance(column.values, np.ndarray):
        return "text"
    return "integer" if column.values.dtype.kind in "iub" else "number"


def _column(document: dict[str, Any]) -> Column:
    """Return a column of a JSON document; ValueError or TypeError where it is none."""
    name, label, unit, kind = (
        _text(document[key]) for key in ("name", "label", "unit", "type")
    )
    values = document["values"]
    if not isinstance(values, list):
        raise TypeError(f"the values of {name} are no list")
    if kind == "text":
        return Column(name, [_text(value) for value in values], label, unit)
    if any(isinstance(value, (str, list, dict)) for value in values):
        raise TypeError(f"the values of {name} are no numbers")
    dtype = {"integer": np.int64, "number": np.float64}[kind]
    return Column(name, np.array(values, dtype=dtype), label, unit)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"wanted text, got {value!r}"[:200])
    value.encode()  # half of a surrogate pair is no text; a ValueError tells of it
    return value


def _fact(value: Any) -> Value:
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"wanted a number or text, got {value!r}"[:200])
    return _text(value) if isinstance(value, str) else value
