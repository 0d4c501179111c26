"""Open the corpus that a spec names, so that documents can be read from it.

Every corpus can be read from any point on: each piece carries the cursor that leads
back to it. A cursor is a small JSON object, whose meaning only its own corpus knows:

* `{"document": i}`: the corpus that ships, and documents in memory;
* `{"file": i, "offset": bytes}`: text and JSON lines, where the offset counts
  decompressed bytes;
* `{"file": i, "group": g, "row": r}`: Parquet, by row group;
* `{"row": r}`: data sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from functools import cached_property
from pathlib import Path
from typing import Any

from actstore.console.user_warnings import warn
from actstore.errors import CorpusError, HarvestWarning, SpecError
from actstore.text.choose_files import files_with_documents, kind_of_files
from actstore.text.corpus_files import CorpusFiles, find_files
from actstore.text.documents import (
    Content,
    Corpus,
    CorpusCursor,
    DocumentColumn,
    Piece,
    describe_value,
)
from actstore.text.file_formats import (
    FileCorpus,
    FileFormat,
    JsonLinesFormat,
    ParquetFormat,
    TextFormat,
)
from schemas.source import CorpusSource

__all__ = [
    "BuiltinCorpus",
    "Corpus",
    "CorpusCursor",
    "MemoryCorpus",
    "Piece",
    "check_options",
    "open_corpus",
]

BUILTIN_PREFIX = "builtin:"
WITHOUT_FILES = frozenset({"builtin", "dataset", "hub", "memory", "imported"})

_TABLE_OPTIONS = ("split", "text_column", "token_column")
# The options of a CorpusSource that each kind of corpus has a use for.
OPTIONS_OF_KIND: dict[str, tuple[str, ...]] = {
    "builtin": (),
    "memory": (),
    "text": ("split",),
    "jsonl": _TABLE_OPTIONS,
    "parquet": _TABLE_OPTIONS,
    "dataset": _TABLE_OPTIONS,
    "hub": (*_TABLE_OPTIONS, "revision", "config"),
}
# For messages: an option as it is written in Python and on the command line, and what
# it belongs to.
OPTION_TEXTS = {
    "revision": ("revision (--corpus-revision)", "a data set on the hub"),
    "config": ("config (--corpus-config)", "a data set on the hub"),
    "split": ("split (--split)", "files and data sets"),
    "text_column": (
        "text_column (--text-column)",
        "JSONL, Parquet and data sets",
    ),
    "token_column": (
        "token_column (--token-column)",
        "JSONL, Parquet and data sets",
    ),
}


def open_corpus(source: CorpusSource) -> Corpus:
    """Open the corpus that a source names.

    `kind="auto"` is decided by the name, and by the files that it leads to. Files that
    are left out are told of in a HarvestWarning.

    Raises:
        SpecError: An option that a corpus of this kind has no use for.
        CorpusError: There is nothing to read, or no such split.
    """
    files = None
    if source.kind not in WITHOUT_FILES:
        files = _files_of(source)
    kind = _kind_of(source, files)
    check_options(source, kind)
    if kind == "builtin":
        return BuiltinCorpus(source.name)
    if kind in {"dataset", "hub"}:
        # `datasets` takes seconds to import, and most harvests do without it.
        from actstore.text.hf_datasets import open_dataset

        return open_dataset(source, hub=kind == "hub")
    if files is None:
        raise CorpusError(
            f"corpus {source.name!r} of kind {kind!r}: pass its documents as `tokens=`"
            " from Python"
        )
    column = DocumentColumn.of(source)
    kept, notes = files_with_documents(files, kind, source.split, column)
    for note in notes:
        warn(f"corpus {source.name}: {note}", HarvestWarning)
    return FileCorpus(kept, _format_of(kind, column))


def check_options(source: CorpusSource, kind: str) -> None:
    """Check that a corpus of this kind has a use for every option that is given.

    Raises:
        SpecError: It has none for one of them, or one is empty, or two contradict.
    """
    useful = OPTIONS_OF_KIND.get(kind, ())
    for name, (option, belongs_to) in OPTION_TEXTS.items():
        value = getattr(source, name)
        if value == "":
            raise SpecError(f"{option}: wanted a name, got ''; leave it out")
        if value is not None and name not in useful:
            raise SpecError(
                f"corpus {source.name!r} is of kind {kind}, but {option} belongs to"
                f" {belongs_to}; leave it out"
            )
    if source.text_column is not None and source.token_column is not None:
        raise SpecError(
            "text_column (--text-column) and token_column (--token-column): wanted one"
            " of them, got both"
        )


def _kind_of(source: CorpusSource, files: CorpusFiles | None) -> str:
    if source.kind != "auto":
        return source.kind
    if files:
        return kind_of_files(files)
    return "builtin" if source.name.startswith(BUILTIN_PREFIX) else "hub"


def _format_of(kind: str, column: DocumentColumn) -> FileFormat:
    if kind == "text":
        return TextFormat()
    if kind == "jsonl":
        return JsonLinesFormat(column)
    return ParquetFormat(column)


def _files_of(source: CorpusSource) -> CorpusFiles | None:
    """Return the files that a name leads to.

    None where it is no path: the corpus that ships, or what can only be on the hub.
    """
    if source.kind == "auto" and source.name.startswith(BUILTIN_PREFIX):
        return None
    try:
        return find_files(source.name)
    except CorpusError:
        if source.kind == "auto" and _may_be_on_the_hub(source.name):
            return None
        raise


def _may_be_on_the_hub(name: str) -> bool:
    """Return whether a name can be one on the hub: `name` or `user/name`."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return False
    if any(sign in name for sign in ":*?[\\"):
        return False
    # A folder of that name which cannot be read is what was meant, not the hub.
    return not Path(name).exists()


class BuiltinCorpus:
    """`builtin:stdlib`: the standard library of the Python that is running.

    Its cursor is `{"document": i}`, i counting its paths.
    """

    def __init__(self, name: str) -> None:
        if name != "builtin:stdlib":
            raise CorpusError(
                f"there is no corpus {name!r}; the one that ships is builtin:stdlib"
            )

    @cached_property
    def _files(self) -> CorpusFiles:
        import fsspec

        from actstore.builtin import stdlib_corpus

        root = stdlib_corpus.library_folder()
        paths = [str(root / path) for path in stdlib_corpus.document_paths(root)]
        return CorpusFiles(fsspec.filesystem("file"), tuple(paths))

    def pieces(self, cursor: CorpusCursor | None) -> Iterator[Piece]:
        """See `Corpus.pieces`."""
        for i, name in _numbered_from(cursor, self._files.paths):
            path = Path(name)
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                # The library has a few files that test other encodings.
                continue
            yield Piece({"document": i}, text, size=path.stat().st_size)

    def digest(self) -> str | None:
        """See `Corpus.digest`."""
        return self._files.digest()

    def size(self) -> int | None:
        """Return the bytes of all files."""
        return self._files.size()


class MemoryCorpus:
    """Documents that are in memory already: texts, or lists of token ids.

    Its cursor is `{"document": i}`. To go on after an interruption, the iterable must
    give the same documents again.

    Args:
        documents: Read once for each call of `pieces`.
        separate: Whether each item is a document of its own. If not, all of them are
            one stream that neither begins nor ends.
    """

    def __init__(self, documents: Iterable[Content], *, separate: bool = True) -> None:
        self._documents = documents
        self._separate = separate

    def pieces(self, cursor: CorpusCursor | None) -> Iterator[Piece]:
        """See `Corpus.pieces`."""
        for i, content in _numbered_from(cursor, self._documents):
            # Arrays of no dimension have `__len__` too, and raise when it is called.
            has_length = (
                hasattr(content, "__len__") and getattr(content, "ndim", 1) != 0
            )
            if content is not None and not has_length:
                raise CorpusError(
                    f"document {i}: wanted a text or a list of token ids, got"
                    f" {describe_value(content)}"
                )
            yield Piece(
                {"document": i}, content, first=self._separate, last=self._separate
            )

    def digest(self) -> str | None:
        """Return None: only reading all documents would tell."""
        return None

    def size(self) -> int | None:
        """Return the number of documents, where the iterable has a length."""
        if isinstance(self._documents, Sized):
            return len(self._documents)
        return None


def _numbered_from(
    cursor: CorpusCursor | None, documents: Iterable[Any]
) -> Iterator[tuple[int, Any]]:
    """Give the documents from a cursor on, each with its number in the corpus."""
    start = cursor["document"] if cursor else 0
    return enumerate(itertools.islice(documents, start, None), start)
