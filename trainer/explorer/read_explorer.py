"""Reads the explorer's files, which may be a stranger's: all of it is checked first."""

from __future__ import annotations

import math
import os
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actstore.errors import CorruptError
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.explorer import ExplorerRecord
from trainer.errors import RunError
from trainer.explorer.explorer_tables import (
    CONTEXTS,
    LATENTS,
    META,
    OF_LAYER,
    TOKENS,
    TOKENS_SCHEMA,
    contexts_schema,
    latents_schema,
)
from trainer.explorer.remote_files import copied

MOST_GROUP_BYTES = 1 << 28  # of one row group, unpacked
MOST_TEXT_BYTES = 1 << 28  # of all tokens' texts


class Explorer:
    """The explorer's files of one run, open for reading.

    Attributes:
        folder: Where they are, or a copy of them where they are in an object store.
        record: What they hold.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the files, and check that they are what the record says.

        Args:
            folder: Where they are: a path or any fsspec URL.

        Raises:
            RunError: There are none.
            SpecError: The record is none of ours.
            CorruptError: A file is not what it must be.
        """
        storage = Storage(os.fspath(folder))
        local = storage.local
        self.folder = copied(storage, self) if local is None else local
        path = self.folder / META
        if not path.is_file():
            raise RunError(
                f"{self.folder}: wanted the files of an explorer ({META} and Parquet),"
                " there are none; `trainer explore RUN` makes them"
            )
        if path.stat().st_size > SMALL_JSON:
            raise CorruptError(f"{path}: {path.stat().st_size:,} bytes, too many")
        self.record = validated_json(ExplorerRecord, path.read_bytes(), str(path))
        self._latents = self._opened(LATENTS, latents_schema(self.record))
        self._contexts = self._opened(CONTEXTS, contexts_schema(self.record))
        self._check_rows()
        self._context_groups = self._groups_of_contexts()

    @property
    def n_groups(self) -> int:
        """How many row groups of latents there are."""
        return math.ceil(self.record.n_latents / self.record.row_group)

    def columns(self, names: list[str]) -> dict[str, NDArray[Any]]:
        """Return some columns of all latents: [m], or [m, k] for lists of k."""
        table = self._read(self._latents, None, names, LATENTS)
        return {name: _numbers(table.column(name)) for name in names}

    def latents(self, group: int) -> list[dict[str, Any]]:
        """Return the columns of a row group's latents, one after the other."""
        rows: list[dict[str, Any]] = self._read(
            self._latents, group, None, LATENTS
        ).to_pylist()
        first = group * self.record.row_group
        if [row["latent"] for row in rows] != list(range(first, first + len(rows))):
            raise CorruptError(f"{self.folder / LATENTS}: its latents are out of order")
        return rows

    def contexts(self, group: int) -> dict[str, NDArray[Any]]:
        """Return the columns of the contexts of a row group's latents."""
        names = contexts_schema(self.record).names
        where = self._context_groups.get(group)
        if where is None:
            window = self.record.before + 1 + self.record.after
            empty = {name: np.zeros(0, np.int64) for name in names}
            lists = {name: np.zeros((0, window)) for name in ("tokens", "values")}
            return empty | lists
        table = self._read(self._contexts, where, None, CONTEXTS)
        columns = {name: _numbers(table.column(name)) for name in names}
        first = group * self.record.row_group
        limits = {
            "latent": (
                first,
                min(first + self.record.row_group, self.record.n_latents),
            ),
            "group": (0, OF_LAYER + 1),
            "layer": (0, len(self.record.layers)),
        }
        for name, (low, end) in limits.items():
            values = columns[name]
            if (values < low).any() or (values >= end).any():
                raise CorruptError(
                    f"{self.folder / CONTEXTS}: {name} {values.min()} to"
                    f" {values.max()}; wanted {low} to {end - 1}"
                )
        return columns

    @cached_property
    def texts(self) -> dict[int, str]:
        """The text of each token that is shown."""
        file = self._opened(TOKENS, TOKENS_SCHEMA)
        size = sum(
            file.metadata.row_group(i).total_byte_size
            for i in range(file.metadata.num_row_groups)
        )
        if size > MOST_TEXT_BYTES:
            raise CorruptError(f"{self.folder / TOKENS}: {size:,} bytes of text")
        table = file.read()
        tokens = table.column("token").to_pylist()
        return dict(zip(tokens, table.column("text").to_pylist(), strict=True))

    def _opened(self, name: str, schema: pa.Schema) -> pq.ParquetFile:
        """Open a file, and check its columns and the sizes of its row groups."""
        path = self.folder / name
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise CorruptError(
                f"{path}: it is no Parquet file ({error}); `trainer explore RUN"
                " --again` makes it again"
            ) from None
        if not file.schema_arrow.equals(schema):
            raise CorruptError(
                f"{path}: its columns are not those of an explorer; `trainer explore"
                " RUN --again` makes it again"
            )
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).total_byte_size
            if size > MOST_GROUP_BYTES:
                raise CorruptError(f"{path}: row group {group} has {size:,} bytes")
        return file

    def _check_rows(self) -> None:
        metadata = self._latents.metadata
        groups = [
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        ]
        full, rest = divmod(self.record.n_latents, self.record.row_group)
        wanted = [self.record.row_group] * full + [rest] * (rest > 0)
        if groups != wanted:
            raise CorruptError(
                f"{self.folder / LATENTS}: {sum(groups):,} latents in {len(groups)} row"
                f" groups; the record says {self.record.n_latents:,} in {len(wanted)}"
            )

    def _groups_of_contexts(self) -> dict[int, int]:
        """Return where the contexts of each row group of latents are, if it has any."""
        found: dict[int, int] = {}
        metadata = self._contexts.metadata
        for where in range(metadata.num_row_groups):
            statistics = metadata.row_group(where).column(0).statistics
            lowest = None if statistics is None else statistics.min
            if not isinstance(lowest, int) or lowest < 0:
                raise CorruptError(
                    f"{self.folder / CONTEXTS}: row group {where} does not say which"
                    " latents it is of"
                )
            found[lowest // self.record.row_group] = where
        return found

    def _read(
        self,
        file: pq.ParquetFile,
        group: int | None,
        names: list[str] | None,
        name: str,
    ) -> pa.Table:
        try:
            if group is None:
                return file.read(names)
            return file.read_row_group(group, names)
        except (OSError, pa.ArrowException) as error:
            raise CorruptError(f"{self.folder / name}: {error}") from None


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column as numbers [n], or [n, k] where it is of lists of k."""
    whole = column.combine_chunks()
    if pa.types.is_fixed_size_list(whole.type):
        size = whole.type.list_size
        flat = whole.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(-1, size)
    return np.asarray(whole.to_numpy(zero_copy_only=False))
