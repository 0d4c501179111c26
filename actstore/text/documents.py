"""What a corpus gives: pieces of documents, and what a document may be in a row of a
file or a data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from actstore.errors import CorpusError
from schemas.source import CorpusSource

Cursor = dict[str, Any]
Content = Any  # text, or token ids (a sequence or array of integers), or None
_SHOWN = 40


class Piece(NamedTuple):
    """A document, or a part of a long one. content: str, or token ids where the corpus
    is tokenised already.

    first, last: whether the document begins and ends with it. size: what it takes of
    the corpus, in the measure of `Corpus.size`.
    """

    cursor: Cursor
    content: Content
    first: bool = True
    size: int = 1
    last: bool = True


class Corpus(Protocol):
    """A source of documents."""

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        """Everything from `cursor` on (None: from the beginning). Raises CorpusError."""
        ...

    def digest(self) -> str | None:
        """Identifies the contents, where that is known without reading them all."""
        ...

    def size(self) -> int | None:
        """The sum of all pieces' sizes (bytes of files, rows), where that is known
        without reading them all.
        """
        ...


class Column(NamedTuple):
    """The column with the documents; ids: whether they are token ids. `a.b`: field b of
    a, if no column is so named.
    """

    name: str
    ids: bool = False

    @classmethod
    def of(cls, source: CorpusSource) -> Column:
        """The one that a source names, or else `text`."""
        if source.token_column is not None:
            return cls(source.token_column, ids=True)
        return cls(source.text_column or "text")

    def of_row(self, row: Mapping[str, Any], where: str) -> Content:
        """The document in a row of named values; None where there is none. Raises
        CorpusError.
        """
        return self.checked(
            row[self.name] if self.name in row else self._field(row, where), where
        )

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the column, or its first part."""
        return self.path(row)[0] in row

    def path(self, names: Iterable[str]) -> list[str]:
        """The column's name among those of the columns, followed by the fields inside
        it.
        """
        return [self.name] if self.name in names else self.name.split(".")

    def checked(self, value: Any, where: str) -> Content:
        """The value, if it can be a document of this column. Raises CorpusError."""
        if value is None:
            return None
        if self.ids:
            _check_ids(value, f"{where}, column {self.name!r}")
        elif not isinstance(value, str):
            ids = isinstance(value, (list, tuple)) and all(
                type(one) is int for one in value
            )
            advice = (
                "name token ids with --token-column"
                if ids
                else "name the column with text by --text-column"
            )
            raise CorpusError(
                f"{where}, column {self.name!r}: wanted text, got {shown(value)};"
                f" {advice}"
            )
        return value

    def missing(self, names: Iterable[str], where: str) -> CorpusError:
        """That it is not there, with the columns that are."""
        option = "--token-column" if self.ids else "--text-column"
        have = ", ".join(sorted(names)) or "none"
        return CorpusError(
            f"{where}: there is no column {self.name!r}; it has {have} (name it with"
            f" {option})"
        )

    def _field(self, row: Mapping[str, Any], where: str) -> Any:
        value: Any = row
        for part in self.name.split("."):
            if value is None:
                return None
            if not isinstance(value, Mapping) or part not in value:
                raise self.missing(_names(row), where)
            value = value[part]
        return value


def shown(value: Any) -> str:
    """A value for a message: its type, and the value where it is short."""
    text = repr(value)
    return (
        f"{text} ({type(value).__name__})"
        if len(text) <= _SHOWN
        else f"a {type(value).__name__}"
    )


def _check_ids(value: Any, where: str) -> None:
    """A list of integers from 0; of an array the rest is seen to where it is used."""
    advice = "wanted a list of token ids (whole numbers from 0)"
    if hasattr(value, "dtype"):
        return
    if not isinstance(value, (list, tuple)):
        raise CorpusError(
            f"{where}: {advice}, got {shown(value)}; name the column with"
            " --token-column"
        )
    if set(map(type, value)) <= {int} and min(value, default=0) >= 0:
        return
    at = next(i for i, one in enumerate(value) if type(one) is not int or one < 0)
    raise CorpusError(f"{where}: {advice}, but its item {at} is {shown(value[at])}")


def _names(row: Mapping[str, Any]) -> Iterator[str]:
    """Columns, those inside others as `a.b`."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in _names(value))
        else:
            yield str(name)
