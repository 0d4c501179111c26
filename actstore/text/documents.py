"""Pieces of documents, which every corpus gives, each with the cursor back to it.

Here are the types that all kinds of corpora share (`Piece`, `Corpus`), and
`DocumentColumn`, which finds a document in a row of a file or a data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from actstore.errors import CorpusError
from schemas.source import CorpusSource

# Where in a corpus a piece begins: a small JSON object. Only the corpus that made it
# knows what it means (see `actstore/text/corpora.py`).
CorpusCursor = dict[str, Any]
# A text, or token ids (a sequence or array of integers), or None for no document.
Content = Any

_LONGEST_SHOWN = 40  # characters of a value that a message still quotes


class Piece(NamedTuple):
    """A document, or one part of a long document.

    Attributes:
        cursor: Where the piece begins in its corpus.
        content: A text, or token ids where the corpus is tokenised already, or None.
        first: Whether the document begins with this piece.
        size: How much of the corpus the piece is, in the unit of `Corpus.size`.
        last: Whether the document ends with this piece.
    """

    cursor: CorpusCursor
    content: Content
    first: bool = True
    size: int = 1
    last: bool = True


class Corpus(Protocol):
    """A source of documents that can be read from any cursor on."""

    def pieces(self, cursor: CorpusCursor | None) -> Iterator[Piece]:
        """Give all pieces from `cursor` on; None: from the beginning.

        Raises:
            CorpusError: Something cannot be read, or is no document.
        """
        ...

    def digest(self) -> str | None:
        """Return what identifies the contents; None where only reading would tell."""
        ...

    def size(self) -> int | None:
        """Return the sum of all pieces' sizes (bytes of files, or rows of a table).

        None where only reading the whole corpus would tell.
        """
        ...


class DocumentColumn(NamedTuple):
    """The column of a table that holds the documents.

    Attributes:
        name: The column's name. `a.b` means field b of column a, unless a column has
            exactly that name.
        ids: Whether the documents are token ids rather than texts.
    """

    name: str
    ids: bool = False

    @classmethod
    def of(cls, source: CorpusSource) -> DocumentColumn:
        """Return the column that a source names, or else the column `text`."""
        if source.token_column is not None:
            return cls(source.token_column, ids=True)
        return cls(source.text_column or "text")

    def of_row(self, row: Mapping[str, Any], where: str) -> Content:
        """Return the document in a row of named values; None where there is none.

        Args:
            row: Values by the names of their columns.
            where: The row, for an error.

        Raises:
            CorpusError: The column is missing, or its value is no document.
        """
        if self.name in row:
            return self.checked(row[self.name], where)
        return self.checked(self._nested_value(row, where), where)

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has the column, or the column that it is a field of."""
        return self.path(row)[0] in row

    def path(self, names: Iterable[str]) -> list[str]:
        """Return the name of the column, followed by the fields to go down to.

        Args:
            names: The names of all columns. `doc.text` is `["doc.text"]` if a column
                is so named, else `["doc", "text"]`.
        """
        if self.name in names:
            return [self.name]
        return self.name.split(".")

    def checked(self, value: Any, where: str) -> Content:
        """Return `value` if it can be a document of this column.

        Raises:
            CorpusError: It cannot; the message begins with `where`.
        """
        if value is None:
            return None
        if self.ids:
            _check_ids(value, f"{where}, column {self.name!r}")
            return value
        if isinstance(value, str):
            return value
        if _is_list_of_integers(value):
            advice = "name token ids with --token-column"
        else:
            advice = "name the column with text by --text-column"
        raise CorpusError(
            f"{where}, column {self.name!r}: wanted text, got {describe_value(value)};"
            f" {advice}"
        )

    def missing(self, names: Iterable[str], where: str) -> CorpusError:
        """Return the error that the column is not among `names`, which it lists."""
        option = "--token-column" if self.ids else "--text-column"
        existing = ", ".join(sorted(names)) or "none"
        return CorpusError(
            f"{where}: there is no column {self.name!r}; it has {existing} (name it"
            f" with {option})"
        )

    def _nested_value(self, row: Mapping[str, Any], where: str) -> Any:
        """Return the value that `a.b` leads to; None where a step on the way is."""
        value: Any = row
        for step in self.name.split("."):
            if value is None:
                return None
            if not isinstance(value, Mapping) or step not in value:
                raise self.missing(_nested_names(row), where)
            value = value[step]
        return value


def describe_value(value: Any) -> str:
    """Return a value for a message: its type, and itself where it is short."""
    text = repr(value)
    type_name = type(value).__name__
    if len(text) <= _LONGEST_SHOWN:
        return f"{text} ({type_name})"
    return f"a {type_name}"


def _is_list_of_integers(value: Any) -> bool:
    # Not `isinstance`: True and False are integers to Python, and no token ids.
    return isinstance(value, (list, tuple)) and all(type(item) is int for item in value)


def _check_ids(value: Any, where: str) -> None:
    """Raise CorpusError unless `value` is a list of integers from 0 on."""
    advice = "wanted a list of token ids (whole numbers from 0)"
    if hasattr(value, "dtype"):
        # An array: its dtype and range are checked where it is used.
        return
    if not isinstance(value, (list, tuple)):
        raise CorpusError(
            f"{where}: {advice}, got {describe_value(value)}; name the column with"
            " --token-column"
        )
    # One pass in C over a good list; only a bad one is searched for its first fault.
    if set(map(type, value)) <= {int} and min(value, default=0) >= 0:
        return
    for i, item in enumerate(value):
        if type(item) is not int or item < 0:
            raise CorpusError(
                f"{where}: {advice}, but its item {i} is {describe_value(item)}"
            )


def _nested_names(row: Mapping[str, Any]) -> Iterator[str]:
    """Give the names of columns, those inside others as `a.b`."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            for inner_name in _nested_names(value):
                yield f"{name}.{inner_name}"
        else:
            yield str(name)
