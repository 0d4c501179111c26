"""Documents from the `datasets` library: a saved folder, or a hub data set that is
streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import blake3

from actstore.errors import CorpusError
from actstore.text.documents import Column, Cursor, Piece
from actstore.text.splits import TRAIN
from schemas.source import CorpusSource

_TIMEOUT_S = 20.0


class DatasetColumn:
    """One column of a data set, in its own order. Cursor: {"row": r}."""

    def __init__(self, data: Any, column: Column, digest: str | None) -> None:
        self._data, self._column, self._digest = data, column, digest

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        start = cursor["row"] if cursor else 0
        rows = self._data.skip(start) if start else self._data
        for r, row in enumerate(rows, start):
            yield Piece(
                {"row": r}, self._column.of_row(row, f"row {r} of the data set")
            )

    def digest(self) -> str | None:
        return self._digest

    def size(self) -> int | None:
        """Rows; of a streamed data set those its card promises, where the split has a
        card of its own.
        """
        if isinstance(self._data, Sized):
            return len(self._data)
        split, splits = (
            getattr(self._data, "split", None),
            getattr(self._data.info, "splits", None) or {},
        )
        found = splits.get(str(split)) if split is not None else None
        return (
            int(found.num_examples)
            if found is not None and found.num_examples
            else None
        )


def open_dataset(source: CorpusSource, *, hub: bool) -> DatasetColumn:
    """A data set folder written by `save_to_disk`, or a hub name (streamed). Raises
    CorpusError.
    """
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        data = _streamed(source) if hub else _saved(source)
    except ImportError as error:
        raise CorpusError(f"data set {source.name}: {error}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    column = Column.of(source)
    if (names := data.column_names) is not None:
        first = column.path(names)[0]
        if first not in names:
            raise column.missing(names, f"data set {source.name}")
        data = data.select_columns([first])
    return DatasetColumn(data.with_format(None), column, _digest(source, data, hub=hub))


def _saved(source: CorpusSource) -> Any:
    import datasets

    if "::" in source.name:
        raise CorpusError(
            f"{source.name}: the `datasets` library takes `::` for a chain of places;"
            " rename the folder"
        )
    try:
        data = datasets.load_from_disk(source.name)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{source.name}: not a folder that `save_to_disk` wrote: {error}"
        ) from error
    if not isinstance(data, datasets.DatasetDict):
        return _of_split(data, source)
    split = source.split or TRAIN
    if split not in data:
        raise CorpusError(
            f"data set {source.name}: there is no split {split!r}; it has"
            f" {', '.join(data)}"
        )
    return data[split]


def _of_split(data: Any, source: CorpusSource) -> Any:
    """A single data set, if it is of the split that is asked for: its own, or train
    where it has no name.
    """
    own = str(data.split) if data.split is not None else None
    if source.split in {None, own, (own or TRAIN).partition("[")[0]}:
        return data
    have = f"of split {own!r}" if own else "without a split's name"
    raise CorpusError(
        f"{source.name}: a single data set {have}, there is no split {source.split!r};"
        " leave --split out, or give the folder of the split"
    )


def _streamed(source: CorpusSource) -> Any:
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it has

    split = source.split or TRAIN
    # the question first, since `load_dataset` asks again and again where there is no
    # network
    try:
        found = huggingface_hub.HfApi().dataset_info(
            source.name, revision=source.revision, timeout=_TIMEOUT_S
        )
        return datasets.load_dataset(
            source.name, source.config, split=split, revision=found.sha, streaming=True
        )
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        revision = f" at revision {source.revision}" if source.revision else ""
        raise CorpusError(
            f"corpus {source.name!r}: no such file or folder here, and the hub data set"
            f" of that name{revision} (split {split!r}) cannot be opened:"
            f" {str(error).strip()}. Check the name, the split and the network"
        ) from error


def _digest(source: CorpusSource, data: Any, *, hub: bool) -> str | None:
    if hub:
        return source.revision
    fingerprint = getattr(data, "_fingerprint", None)
    return (
        str(blake3.blake3(str(fingerprint).encode()).hexdigest())
        if fingerprint
        else None
    )
