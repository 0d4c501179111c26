"""Where documents come from. Every source can start anywhere: a piece carries the
cursor that leads back to it.

A cursor is a small JSON object, its meaning known to its source alone: `{"document":
i}` (builtin, memory), `{"file": i, "offset": bytes}` (text, JSONL; offsets of the
decompressed bytes), `{"file": i, "group": g, "row": r}` (Parquet), `{"row": r}` (data
sets).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sized
from functools import cached_property
from pathlib import Path

from actstore.errors import CorpusError, HarvestWarning, SpecError
from actstore.text.corpus_files import Files, find
from actstore.text.documents import Column, Content, Corpus, Cursor, Piece, shown
from actstore.text.file_choice import documents_of, kind_of
from actstore.text.file_formats import JsonLines, Parquet, TextFiles
from schemas.source import CorpusSource

__all__ = [
    "Builtin",
    "Corpus",
    "Cursor",
    "Memory",
    "Piece",
    "check_options",
    "open_corpus",
]

COLUMNS = ("split", "text_column", "token_column")
TAKES = {
    "builtin": (),
    "memory": (),
    "text": ("split",),
    **dict.fromkeys(("jsonl", "parquet", "dataset"), COLUMNS),
    "hub": (*COLUMNS, "revision", "config"),
}
WHY = {
    "revision": "revision (--corpus-revision) is of a data set on the hub",
    "config": "config (--corpus-config) is of a data set on the hub",
    "split": "split (--split) is of files and data sets",
    "text_column": "text_column (--text-column) is of JSONL, Parquet and data sets",
    "token_column": "token_column (--token-column) is of JSONL, Parquet and data sets",
}


def open_corpus(source: CorpusSource) -> Corpus:
    """The corpus a source names; `kind="auto"` decides from the name and from what lies
    there.

    Warns (HarvestWarning) of files that are left out.

    Raises:
        SpecError: an option that the kind has no use for; CorpusError: nothing to read,
        or no such split.
    """
    files = (
        None
        if source.kind in {"builtin", "dataset", "hub", "memory", "imported"}
        else _files(source)
    )
    kind = (
        source.kind
        if source.kind != "auto"
        else kind_of(files)
        if files
        else _without_files(source)
    )
    check_options(source, kind)
    if kind == "builtin":
        return Builtin(source.name)
    if kind in {"dataset", "hub"}:
        from actstore.text.hf_datasets import open_dataset

        return open_dataset(source, hub=kind == "hub")
    if files is None:
        raise CorpusError(
            f"corpus {source.name!r} of kind {kind!r}: pass its documents as `tokens=`"
            " from Python"
        )
    column = Column.of(source)
    kept, said = documents_of(files, kind, source.split, column)
    for text in said:
        warnings.warn(f"corpus {source.name}: {text}", HarvestWarning, stacklevel=2)
    if kind == "text":
        return TextFiles(kept)
    return JsonLines(kept, column) if kind == "jsonl" else Parquet(kept, column)


def check_options(source: CorpusSource, kind: str) -> None:
    """Raises SpecError for an option that a corpus of this kind has no use for."""
    for name, why in WHY.items():
        if getattr(source, name) == "":
            raise SpecError(
                f"{why.split(' is of ')[0]}: wanted a name, got ''; leave it out"
            )
        if getattr(source, name) is not None and name not in TAKES.get(kind, ()):
            raise SpecError(
                f"corpus {source.name!r} is of kind {kind}, but {why}; leave it out"
            )
    if source.text_column is not None and source.token_column is not None:
        raise SpecError(
            "text_column (--text-column) and token_column (--token-column): wanted one"
            " of them, got both"
        )


def _files(source: CorpusSource) -> Files | None:
    """The files of a name; None where it is no path: what ships, or what can only be on
    the hub.
    """
    if source.kind == "auto" and source.name.startswith("builtin:"):
        return None
    try:
        return find(source.name)
    except CorpusError:
        if source.kind == "auto" and _may_be_hub(source.name):
            return None
        raise


def _without_files(source: CorpusSource) -> str:
    return "builtin" if source.name.startswith("builtin:") else "hub"


def _may_be_hub(name: str) -> bool:
    """Whether a name that leads to no file can be one on the hub: `name` or
    `user/name`.
    """
    if (
        name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or any(sign in name for sign in ":*?[\\")
    ):
        return False
    return not Path(name).exists()


class Builtin:
    """`builtin:stdlib`: the standard library of the running interpreter. Cursor:
    {"document": i}, i among its paths.
    """

    def __init__(self, name: str) -> None:
        if name != "builtin:stdlib":
            raise CorpusError(
                f"there is no corpus {name!r}; the one that ships is builtin:stdlib"
            )

    @cached_property
    def _files(self) -> Files:
        import fsspec

        from actstore.builtin import stdlib_corpus

        root = stdlib_corpus.library()
        return Files(
            fsspec.filesystem("file"),
            tuple(str(root / path) for path in stdlib_corpus.paths(root)),
        )

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        start = cursor["document"] if cursor else 0
        for i, path in enumerate(
            itertools.islice(self._files.paths, start, None), start
        ):
            try:
                yield Piece(
                    {"document": i},
                    Path(path).read_text(encoding="utf-8"),
                    size=Path(path).stat().st_size,
                )
            except UnicodeDecodeError:
                # the library's few files that test other encodings
                continue

    def digest(self) -> str | None:
        return self._files.digest()

    def size(self) -> int | None:
        return self._files.size()


class Memory:
    """Documents that are in memory already: texts, or sequences of token ids. Cursor:
    {"document": i}.

    To go on after an interruption the iterable must give the same documents again.
    """

    def __init__(self, documents: Iterable[Content], *, separate: bool = True) -> None:
        self._documents, self._separate = documents, separate

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        start = cursor["document"] if cursor else 0
        for i, content in enumerate(
            itertools.islice(self._documents, start, None), start
        ):
            if content is not None and (
                not hasattr(content, "__len__") or getattr(content, "ndim", 1) == 0
            ):
                raise CorpusError(
                    f"document {i}: wanted a text or a list of token ids, got"
                    f" {shown(content)}"
                )
            yield Piece(
                {"document": i}, content, first=self._separate, last=self._separate
            )

    def digest(self) -> str | None:
        return None

    def size(self) -> int | None:
        return len(self._documents) if isinstance(self._documents, Sized) else None
