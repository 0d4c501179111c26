"""Read documents with the `datasets` library.

They come from a folder that `save_to_disk` wrote, or from a data set on the hub, which
is streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import blake3

from actstore.errors import CorpusError
from actstore.text.documents import CorpusCursor, DocumentColumn, Piece
from actstore.text.split_names import TRAIN
from schemas.source import CorpusSource

_TIMEOUT_S = 20.0


class DatasetCorpus:
    """The documents in one column of a data set, in its own order.

    Its cursor is `{"row": r}`.
    """

    def __init__(self, data: Any, column: DocumentColumn, digest: str | None) -> None:
        self._data = data
        self._column = column
        self._digest = digest

    def pieces(self, cursor: CorpusCursor | None) -> Iterator[Piece]:
        """See `Corpus.pieces`."""
        start = cursor["row"] if cursor else 0
        rows = self._data.skip(start) if start else self._data
        for r, row in enumerate(rows, start):
            document = self._column.of_row(row, f"row {r} of the data set")
            yield Piece({"row": r}, document)

    def digest(self) -> str | None:
        """See `Corpus.digest`."""
        return self._digest

    def size(self) -> int | None:
        """Return the number of rows.

        For a streamed data set that is what its card promises for the split. A part of
        a split (`train[:10%]`) has no entry in the card, and its size is not known.
        """
        if isinstance(self._data, Sized):
            return len(self._data)
        split = getattr(self._data, "split", None)
        if split is None:
            return None
        card_splits = getattr(self._data.info, "splits", None) or {}
        promised = card_splits.get(str(split))
        if promised is None or not promised.num_examples:
            return None
        return int(promised.num_examples)


def open_dataset(source: CorpusSource, *, hub: bool) -> DatasetCorpus:
    """Open a data set: a folder that `save_to_disk` wrote, or a name on the hub.

    Raises:
        CorpusError: It cannot be opened, or lacks the split or the column.
    """
    import datasets

    # Its progress bars would break into those of the command line.
    bars_were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        data = _streamed(source) if hub else _saved(source)
    except ImportError as error:
        raise CorpusError(f"data set {source.name}: {error}") from error
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()
    column = DocumentColumn.of(source)
    column_names = data.column_names
    if column_names is not None:
        outer_name = column.path(column_names)[0]
        if outer_name not in column_names:
            raise column.missing(column_names, f"data set {source.name}")
        # Other columns (images, long tables) would be decoded for nothing.
        data = data.select_columns([outer_name])
    digest = _digest(source, data, hub=hub)
    return DatasetCorpus(data.with_format(None), column, digest)


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
        _check_single_split(data, source)
        return data
    split = source.split or TRAIN
    if split not in data:
        raise CorpusError(
            f"data set {source.name}: there is no split {split!r}; it has"
            f" {', '.join(data)}"
        )
    return data[split]


def _check_single_split(data: Any, source: CorpusSource) -> None:
    """Raise CorpusError unless a single data set is of the split that is asked for.

    `train[:10%]` is of train, and so is a data set that was saved without a name.
    """
    own_split = str(data.split) if data.split is not None else None
    base_split = (own_split or TRAIN).partition("[")[0]
    if source.split in {None, own_split, base_split}:
        return
    told = f"of split {own_split!r}" if own_split else "without a split's name"
    raise CorpusError(
        f"{source.name}: a single data set {told}, there is no split"
        f" {source.split!r}; leave --split out, or give the folder of the split"
    )


def _streamed(source: CorpusSource) -> Any:
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it has

    split = source.split or TRAIN
    try:
        # This is asked first because it gives up after a while: without a network,
        # `load_dataset` tries again and again.
        info = huggingface_hub.HfApi().dataset_info(
            source.name, revision=source.revision, timeout=_TIMEOUT_S
        )
        return datasets.load_dataset(
            source.name, source.config, split=split, revision=info.sha, streaming=True
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
    if not fingerprint:
        return None
    return str(blake3.blake3(str(fingerprint).encode()).hexdigest())
