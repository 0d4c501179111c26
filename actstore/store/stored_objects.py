"""The objects of a store, each checked as it is read: its size, its checksum or digest,
and whether it can be.

The manifest is checked by then (`format/manifest_checks.py`). Memory is taken for what
is there, never on the manifest's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import CorruptError, SiteError
from actstore.format import keys, object_sizes
from actstore.format.json_records import read_record
from actstore.format.layout import n_chunks
from actstore.format.manifest_checks import check_record
from actstore.format.shard import ABSENT, ShardCodec, ShardIndex, decode_plain
from actstore.format.storage import Storage
from schemas.harvest import Layout
from schemas.manifest import HELD_OUT_EVERY, StoreManifest, UnitRecord
from schemas.source import Site


class StoredObjects:
    """What `Store` reads from. Row id = unit * capacity + slot."""

    def __init__(self, storage: Storage, manifest: StoreManifest) -> None:
        self.storage = storage
        self.manifest = manifest
        self.layout: Layout = manifest.layout
        self.sites: tuple[str, ...] = tuple(site.name for site in manifest.sites)
        self._by_name = {site.name: site for site in manifest.sites}
        self._indexes: dict[tuple[str, int], ShardIndex] = {}

    @property
    def url(self) -> str:
        return self.storage.url

    def site(self, name: str) -> Site:
        """A site by name. Raises SiteError with the sites there are."""
        if name not in self._by_name:
            import difflib

            near = difflib.get_close_matches(name, self.sites, 3, 0.5) or list(
                self.sites[:3]
            )
            raise SiteError(
                f"{self.url}: no site {name!r} in this store; the nearest are"
                f" {', '.join(near)}"
            )
        return self._by_name[name]

    def check(self) -> None:
        """Whether what the manifest counts is there: rows by unit, and statistics as
        large as its sites.

        Raises CorruptError. What else a store holds is checked where it is read.
        """
        _ = self.unit_rows
        key = keys.merged_stats_key(self._newest)
        if (size := self.storage.size(key)) != self.manifest.files[key].bytes:
            raise CorruptError(
                f"{self.url}/{key}: {size} bytes, recorded"
                f" {self.manifest.files[key].bytes}"
            )

    @cached_property
    def unit_rows(self) -> NDArray[np.int32]:
        """Valid rows of each unit, int32 [n_units]; they are its first slots."""
        m, layout = self.manifest, self.layout
        where = f"{self.url}/{object_sizes.column_key(self._newest, 'rows')}"
        rows: NDArray[np.int32] = self.column("rows")
        most = layout.unit_sequences * layout.context
        if rows.min() < 0 or rows.max() > most:
            raise CorruptError(
                f"{where}: {rows.min()} to {rows.max()} rows in a unit; it has 0 to"
                f" {most}"
            )
        total = int(rows.sum(dtype=np.int64))
        held_out = int(rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY].sum(dtype=np.int64))
        if (total, total - held_out) != (m.n_rows, m.n_train_rows):
            raise CorruptError(
                f"{where}: {total} rows, {total - held_out} for training; the manifest"
                f" says {m.n_rows} and {m.n_train_rows}"
            )
        return rows

    def rows_in(self, unit: int) -> int:
        """Valid rows of a unit."""
        return int(self.unit_rows[unit])

    def column(self, name: str) -> NDArray[Any]:
        """One of the columns over all units (`sizes.COLUMNS`)."""
        key, (dtype, _) = (
            object_sizes.column_key(self._newest, name),
            object_sizes.COLUMNS[name],
        )
        shape = object_sizes.column_shape(name, self.manifest.n_units, len(self.sites))
        return decode_plain(self.file(key), shape, dtype, f"{self.url}/{key}")

    def file(self, key: str) -> bytes:
        """One of the manifest's files. Raises CorruptError where its bytes are not
        those recorded.
        """
        record = self.manifest.files[key]
        data = self.storage.read(key, record.bytes)
        if len(data) != record.bytes or blake3(data).hexdigest() != record.digest:
            raise CorruptError(f"{self.url}/{key}: its bytes are not those recorded")
        return data

    def tokenizer_keys(self) -> list[str]:
        """Keys of the tokenizer's files."""
        return [key for key in self.manifest.files if key.startswith("tokenizer/")]

    def codec(self, site: str) -> ShardCodec:
        """How a site's rows are stored."""
        return object_sizes.codec(self.manifest.spec, self.layout, self.site(site).d)

    def record(self, unit: int) -> UnitRecord:
        """A unit's commit record: its objects over all generations, their sizes and
        digests.
        """
        found = [self._record(unit, i) for i in self._generations_of(unit)]
        objects = {key: one for record in found for key, one in record.objects.items()}
        return found[0].model_copy(update={"objects": objects})

    def record_keys(self, unit: int) -> list[str]:
        """Keys of a unit's commit records, one for each generation that has it."""
        return [keys.unit_key(unit, i) for i in self._generations_of(unit)]

    def _generations_of(self, unit: int) -> list[int]:
        spans = [
            range(g.first_unit, g.first_unit + g.n_units)
            for g in self.manifest.generations
        ]
        return [i for i, span in enumerate(spans) if unit in span]

    def _record(self, unit: int, generation: int) -> UnitRecord:
        key = keys.unit_key(unit, generation)
        record = read_record(self.storage, key, UnitRecord)
        check_record(self.manifest, generation, unit, record, f"{self.url}/{key}")
        return record

    @property
    def _newest(self) -> int:
        return len(self.manifest.generations) - 1

    def index(self, site: str, unit: int) -> ShardIndex:
        """Where the chunks of a unit lie in its shard; read once."""
        if (site, unit) not in self._indexes:
            try:
                self._indexes[site, unit] = self.read_index(site, unit)
            except CorruptError as error:
                key = keys.chunk_key(keys.acts_key(site), unit, 0)
                raise CorruptError(
                    f"{self.url}/{key}: {error}; `actstore verify` lists every bad"
                    " object"
                ) from error
        return self._indexes[site, unit]

    def read_index(self, site: str, unit: int) -> ShardIndex:
        """`index`, read anew and not kept."""
        codec = self.codec(site)
        key = keys.chunk_key(keys.acts_key(site), unit, 0)
        raw = self.storage.read_ranges(key, [(-codec.index_bytes, codec.index_bytes)])[
            0
        ]
        return codec.read_index(raw, n_chunks(self.rows_in(unit), codec.chunk_rows))

    def int8_parts(
        self, site: str, unit: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """A unit's row scales [capacity] and channel mean and step [2, d], of an int8
        store.
        """
        scale = self.plain(
            keys.chunk_key(keys.scale_key(site), unit),
            (self.layout.capacity,),
            np.float16,
        )
        shape = (1, 2, self.site(site).d)
        step = self.plain(
            keys.chunk_key(keys.step_key(site), unit, 0, 0), shape, np.float32
        )
        return scale, step[0]

    def read_slots(
        self, site: str, unit: int, slots: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Rows of a unit as they are stored, [n, d], by their slots, int64 [n]."""
        codec, index = self.codec(site), self.index(site, unit)
        chunks = slots // codec.chunk_rows
        wanted = np.unique(chunks)
        key = keys.chunk_key(keys.acts_key(site), unit, 0)
        if (index.offset[wanted] == ABSENT).any():
            raise CorruptError(f"{self.url}/{key}: a chunk with valid rows is absent")
        ranges = [(int(index.offset[c]), int(index.length[c])) for c in wanted]
        decoded = out = np.empty((0, codec.d), codec.dtype)
        for chunk, raw in zip(wanted, self._ranges(key, ranges), strict=True):
            try:
                if not len(decoded):
                    # before memory is taken on the manifest's word
                    codec.check_chunk(raw)
                    decoded = np.empty((codec.chunk_rows, codec.d), codec.dtype)
                    out = np.empty((len(slots), codec.d), codec.dtype)
                codec.decode_chunk(raw, decoded)
            except CorruptError as error:
                raise CorruptError(
                    f"{self.url}/{key}: unit {unit}, site {site}, chunk {chunk}:"
                    f" {error}"
                ) from error
            here = chunks == chunk
            out[here] = decoded[slots[here] % codec.chunk_rows]
        return out

    def _ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for start in range(0, len(ranges), 16):
            yield from self.storage.read_ranges(key, ranges[start : start + 16])

    def block(self, unit: int, data: bytes | None = None) -> NDArray[np.int32]:
        """A unit's tokens, int32 [unit_sequences, context]; data: the object, where it
        has been read.
        """
        shape = (self.layout.unit_sequences, self.layout.context)
        key, vocabulary = (
            keys.chunk_key("tokens", unit, 0),
            self.manifest.model.vocabulary,
        )
        tokens = self.plain(key, shape, np.int32, data)
        if tokens.min() < -1 or (vocabulary and tokens.max() >= vocabulary):
            raise CorruptError(
                f"{self.url}/{key}: token ids {tokens.min()} to {tokens.max()}, of"
                f" {vocabulary}"
            )
        return tokens

    def pairs(self, unit: int, data: bytes | None = None) -> NDArray[np.int32]:
        """(sequence, position) of a unit's valid rows, int32 [n, 2]; data: the object,
        where it has been read.
        """
        key, size = keys.chunk_key("rows", unit, 0), self.layout.unit_sequences
        pairs = self.plain(key, (self.layout.capacity, 2), np.int32, data)[
            : self.rows_in(unit)
        ]
        inside = pairs - np.array([unit * size, 0])
        if (inside < 0).any() or (inside >= (size, self.layout.context)).any():
            raise CorruptError(
                f"{self.url}/{key}: a valid row is of no (sequence, position) of unit"
                f" {unit}"
            )
        return pairs

    def plain(
        self, key: str, shape: tuple[int, ...], dtype: Any, data: bytes | None = None
    ) -> NDArray[Any]:
        """An unsharded chunk; data: the object, where it has been read."""
        if data is None:
            data = self.storage.read(
                key, object_sizes.plain(shape, np.dtype(dtype).itemsize)
            )
        return decode_plain(data, shape, dtype, f"{self.url}/{key}")
