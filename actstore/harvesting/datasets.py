"""Documents from the `datasets` library: a saved folder, or a hub data set that is streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import blake3

from actstore.errors import CorpusError
from actstore.harvesting.corpora import Cursor, Piece, check_column
from schemas.source import CorpusSource

_TIMEOUT_S = 20.0


class DatasetColumn:
    """One column of a data set, in its own order. Cursor: {"row": r}."""

    def __init__(self, data: Any, column: str, digest: str | None) -> None:
        self._data, self._column, self._digest = data, column, digest

    def pieces(self, cursor: Cursor | None) -> Iterator[Piece]:
        start = cursor["row"] if cursor else 0
        rows = self._data.skip(start) if start else self._data
        for r, row in enumerate(rows, start):
            check_column(self._column, row, f"row {r} of the data set")
            yield Piece({"row": r}, row[self._column])

    def digest(self) -> str | None:
        return self._digest

    def size(self) -> int | None:
        """Rows; of a streamed data set those its card promises, where the split has a card of its own."""
        if isinstance(self._data, Sized):
            return len(self._data)
        split, splits = getattr(self._data, "split", None), getattr(self._data.info, "splits", None) or {}
        found = splits.get(str(split)) if split is not None else None
        return int(found.num_examples) if found is not None and found.num_examples else None


def open_dataset(source: CorpusSource, *, hub: bool) -> DatasetColumn:
    """A data set folder written by `save_to_disk`, or a hub name (streamed). Raises CorpusError."""
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
    column = source.token_column or source.text_column
    if data.column_names is not None:
        check_column(column, data.column_names, f"data set {source.name}")
        data = data.select_columns([column])
    return DatasetColumn(data, column, _digest(source, data, hub=hub))


def _saved(source: CorpusSource) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(source.name)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{source.name}: not a folder that `save_to_disk` wrote: {error}") from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if source.split not in data:
        raise CorpusError(f"data set {source.name}: there is no split {source.split!r}; it has {', '.join(data)}")
    return data[source.split]


def _streamed(source: CorpusSource) -> Any:
    import datasets
    import httpx
    import huggingface_hub

    try:  # the question first, since `load_dataset` asks again and again where there is no network
        found = huggingface_hub.HfApi().dataset_info(source.name, revision=source.revision, timeout=_TIMEOUT_S)
        return datasets.load_dataset(source.name, source.config, split=source.split, revision=found.sha, streaming=True)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        revision = f" at revision {source.revision}" if source.revision else ""
        raise CorpusError(
            f"corpus {source.name!r}: no such file or folder here, and the hub data set of that name{revision} "
            f"(split {source.split!r}) cannot be opened: {str(error).strip()}. "
            "Check the name, the split and the network"
        ) from error


def _digest(source: CorpusSource, data: Any, *, hub: bool) -> str | None:
    if hub:
        return source.revision
    fingerprint = getattr(data, "_fingerprint", None)
    return str(blake3.blake3(str(fingerprint).encode()).hexdigest()) if fingerprint else None
