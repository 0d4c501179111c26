"""The objects of a store, each checked as it is read.

Checked are its size, its checksum or digest, and whether its values are possible.

The manifest has been checked by then (`format/manifest_checks.py`). Memory is taken for
what is there, never on the manifest's word.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import CorruptError, SiteError
from actstore.format import object_keys, object_sizes
from actstore.format.json_records import read_record
from actstore.format.layout import n_chunks
from actstore.format.manifest_checks import check_record
from actstore.format.shard import ShardCodec, ShardIndex, decode_plain
from actstore.format.storage import Storage
from actstore.store.shard_bytes import ShardBytes, StoredShards
from schemas.harvest import Layout
from schemas.manifest import (
    HELD_OUT_EVERY,
    ObjectRecord,
    StoreManifest,
    UnitRecord,
)
from schemas.source import Site

# Shard indexes that a store keeps. An index takes 16 bytes for each chunk, so that with
# 100 chunks in a shard these are 26 MB.
KEPT_INDEXES = 1 << 14


class StoredObjects:
    """The objects that `Store` reads from. Row id = unit * capacity + slot.

    Attributes:
        storage: Where the objects lie.
        manifest: The record of all that the store holds.
        layout: The sizes of units and chunks.
        sites: Names of the sites, in the manifest's order.
        shards: What gives the bytes of its shards.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: StoreManifest,
        shards: ShardBytes | None = None,
    ) -> None:
        """Read nothing yet; `shards` None: they come straight from the storage."""
        self.storage = storage
        self.shards: ShardBytes = shards or StoredShards(storage)
        self.manifest = manifest
        self.layout: Layout = manifest.layout
        self.sites: tuple[str, ...] = tuple(site.name for site in manifest.sites)
        # Looked up for every read, and a store may have thousands of sites.
        self._by_name = {site.name: site for site in manifest.sites}
        self._indexes: dict[tuple[str, int], ShardIndex] = {}

    @property
    def url(self) -> str:
        """The store's address."""
        return self.storage.url

    def site(self, name: str) -> Site:
        """Return a site by its name.

        Raises:
            SiteError: There is none; the message has the nearest names.
        """
        if not isinstance(name, str) or name not in self._by_name:
            import difflib

            nearest = difflib.get_close_matches(str(name), self.sites, 3, 0.5)
            nearest = nearest or list(self.sites[:3])
            raise SiteError(
                f"{self.url}: no site {name!r} in this store; the nearest are"
                f" {', '.join(nearest)}"
            )
        return self._by_name[name]

    def check(self) -> None:
        """Check that what the manifest counts is there.

        These are the rows of each unit, and statistics as large as the sites make them.

        What else a store holds is checked where it is read.

        Raises:
            CorruptError: Something differs.
        """
        _ = self.unit_rows  # checks itself
        # Its size only: with thousands of sites it is large, and few readers need it.
        key = object_keys.merged_stats_key(self._newest)
        size = self.storage.size(key)
        recorded = self.manifest.files[key].bytes
        if size != recorded:
            raise CorruptError(f"{self.url}/{key}: {size} bytes, recorded {recorded}")

    @cached_property
    def unit_rows(self) -> NDArray[np.int32]:
        """Valid rows of each unit, int32 [n_units]; they are its first slots."""
        manifest = self.manifest
        layout = self.layout
        where = f"{self.url}/{object_sizes.column_key(self._newest, 'rows')}"
        rows: NDArray[np.int32] = self.column("rows")
        most = layout.unit_sequences * layout.context
        if rows.min() < 0 or rows.max() > most:
            raise CorruptError(
                f"{where}: {rows.min()} to {rows.max()} rows in a unit; it has 0 to"
                f" {most}"
            )
        # int64, since a store may have more rows than int32 can count
        total = int(rows.sum(dtype=np.int64))
        held_out_units = slice(HELD_OUT_EVERY - 1, None, HELD_OUT_EVERY)
        held_out = int(rows[held_out_units].sum(dtype=np.int64))
        training = total - held_out
        if total != manifest.n_rows or training != manifest.n_train_rows:
            raise CorruptError(
                f"{where}: {total} rows, {training} for training; the manifest"
                f" says {manifest.n_rows} and {manifest.n_train_rows}"
            )
        return rows

    def rows_in(self, unit: int) -> int:
        """Return how many valid rows a unit has."""
        return int(self.unit_rows[unit])

    def column(self, name: str) -> NDArray[Any]:
        """Return one of the unit columns: a figure of every unit, [n_units, ...].

        Dtype and dimensions are as `object_sizes.COLUMNS` has them.
        """
        key = object_sizes.column_key(self._newest, name)
        dtype, _ = object_sizes.COLUMNS[name]
        n_units = self.manifest.n_units
        shape = object_sizes.column_shape(name, n_units, len(self.sites))
        return decode_plain(self.file(key), shape, dtype, f"{self.url}/{key}")

    def file(self, key: str) -> bytes:
        """Return one of the files that the manifest records.

        Raises:
            CorruptError: Its bytes are not those recorded.
        """
        return self.recorded_bytes(key, self.manifest.files[key])

    def recorded_bytes(self, key: str, record: ObjectRecord) -> bytes:
        """Return an object whose size and digest are recorded.

        Raises:
            CorruptError: Its bytes are not those recorded.
        """
        data = self.storage.read(key, record.bytes)
        same_size = len(data) == record.bytes
        if not same_size or blake3(data).hexdigest() != record.digest:
            raise CorruptError(f"{self.url}/{key}: its bytes are not those recorded")
        return data

    def tokenizer_keys(self) -> list[str]:
        """Return the keys of the tokenizer's files."""
        return [key for key in self.manifest.files if key.startswith("tokenizer/")]

    def codec(self, site: str) -> ShardCodec:
        """Return how a site's rows are stored."""
        d = self.site(site).d
        return object_sizes.codec(self.manifest.spec, self.layout, d)

    def record(self, unit: int) -> UnitRecord:
        """Return a unit's commit record.

        It has the unit's objects over all generations, with their sizes and digests.
        """
        generations = self.generations_of(unit)
        records = [self._record(unit, generation) for generation in generations]
        # Each generation has recorded the objects of its own sites.
        objects = {}
        for record in records:
            objects.update(record.objects)
        return records[0].model_copy(update={"objects": objects})

    def record_keys(self, unit: int) -> list[str]:
        """Return the keys of a unit's commit records.

        There is one for each generation that has the unit.
        """
        return [object_keys.unit_key(unit, i) for i in self.generations_of(unit)]

    def generations_of(self, unit: int) -> list[int]:
        """Return the numbers of the generations that have a unit, in order."""
        having = []
        for i, generation in enumerate(self.manifest.generations):
            end = generation.first_unit + generation.n_units
            if generation.first_unit <= unit < end:
                having.append(i)
        return having

    def _record(self, unit: int, generation: int) -> UnitRecord:
        """Return a unit's commit record of one generation, checked."""
        key = object_keys.unit_key(unit, generation)
        record = read_record(self.storage, key, UnitRecord)
        check_record(self.manifest, generation, unit, record, f"{self.url}/{key}")
        return record

    @cached_property
    def _unit_digests(self) -> NDArray[np.uint8]:
        """The digests of every unit's records, uint8 [n_units, 32]."""
        digests: NDArray[np.uint8] = self.column("digests")
        return digests

    def unit_digest(self, unit: int) -> bytes:
        """Return the digest of a unit's records, 32 bytes."""
        digest: bytes = self._unit_digests[unit].tobytes()
        return digest

    @property
    def _newest(self) -> int:
        """The number of the newest generation."""
        return len(self.manifest.generations) - 1

    def index(self, site: str, unit: int) -> ShardIndex:
        """Return where the chunks of a unit lie in a site's shard.

        It is read once and kept, for all readers of this store together. Safe to use
        from several threads: two that ask at once both read it.

        Raises:
            CorruptError: It cannot be; the caller tells of which shard.
        """
        index = self._indexes.get((site, unit))
        if index is None:
            index = self._read_index(site, unit)
            if len(self._indexes) >= KEPT_INDEXES:
                # All at once: to know the oldest, readers would have to take turns.
                self._indexes.clear()
            self._indexes[site, unit] = index
        return index

    def has_index(self, site: str, unit: int) -> bool:
        """Return whether the index of a shard has been read and is kept."""
        return (site, unit) in self._indexes

    def _read_index(self, site: str, unit: int) -> ShardIndex:
        codec = self.codec(site)
        # The index has the same size in every shard, so one read from the end gets it.
        at_end = (-codec.index_bytes, codec.index_bytes)
        data = self.shards.read(site, unit, [at_end])[0]
        n_wanted = n_chunks(self.rows_in(unit), codec.chunk_rows)
        return codec.read_index(data, n_wanted)

    def int8_parts(
        self, site: str, unit: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Return what a unit of an int8 store is decoded with.

        Returns:
            The scale of each row, float16 [capacity]; and the channel mean and step,
            float32 [2, d].
        """
        scale_key = object_keys.chunk_key(object_keys.scale_key(site), unit)
        scale = self.plain(scale_key, unit, (self.layout.capacity,), np.float16)
        # The array is [unit, 2, d], in chunks of one unit.
        step_key = object_keys.chunk_key(object_keys.step_key(site), unit, 0, 0)
        d = self.site(site).d
        step = self.plain(step_key, unit, (1, 2, d), np.float32)
        return scale, step[0]

    def block(
        self,
        unit: int,
        data: bytes | None = None,
    ) -> NDArray[np.int32]:
        """Return a unit's tokens, int32 [unit_sequences, context]; -1 is padding.

        Args:
            unit: The unit.
            data: The object's bytes, where they have been read already.

        Raises:
            CorruptError: A token id that the model's vocabulary does not have.
        """
        shape = (self.layout.unit_sequences, self.layout.context)
        key = object_keys.chunk_key("tokens", unit, 0)
        vocabulary = self.manifest.model.vocabulary
        tokens = self.plain(key, unit, shape, np.int32, data)
        # 0: the size of the vocabulary is not known
        if tokens.min() < -1 or (vocabulary and tokens.max() >= vocabulary):
            raise CorruptError(
                f"{self.url}/{key}: token ids {tokens.min()} to {tokens.max()}, of"
                f" {vocabulary}"
            )
        return tokens

    def pairs(
        self,
        unit: int,
        data: bytes | None = None,
    ) -> NDArray[np.int32]:
        """Return (sequence, position) of a unit's valid rows, int32 [n, 2].

        They are in the order of their slots.

        Args:
            unit: The unit.
            data: The object's bytes, where they have been read already.

        Raises:
            CorruptError: A sequence or position that the unit does not have.
        """
        key = object_keys.chunk_key("rows", unit, 0)
        unit_sequences = self.layout.unit_sequences
        # Slots after the last valid row hold nothing that means anything.
        of_slots = self.plain(key, unit, (self.layout.capacity, 2), np.int32, data)
        pairs = of_slots[: self.rows_in(unit)]
        # Sequences are counted over the whole store, positions in their sequence.
        inside_unit = pairs - np.array([unit * unit_sequences, 0])
        ends = (unit_sequences, self.layout.context)
        if (inside_unit < 0).any() or (inside_unit >= ends).any():
            raise CorruptError(
                f"{self.url}/{key}: a valid row is of no (sequence, position) of unit"
                f" {unit}"
            )
        return pairs

    def plain(
        self,
        key: str,
        unit: int,
        shape: tuple[int, ...],
        dtype: Any,
        data: bytes | None = None,
    ) -> NDArray[Any]:
        """Return the values in the only chunk of an array that is not sharded.

        Args:
            key: The key of the chunk.
            unit: The unit that it is of.
            shape: The shape of the chunk.
            dtype: The dtype of the values.
            data: The object's bytes, if they have been read already.

        Returns:
            [*shape] of `dtype`.
        """
        if data is None:
            wanted = object_sizes.plain(shape, np.dtype(dtype).itemsize)
            data = self.shards.whole(unit, key, wanted)
        return decode_plain(data, shape, dtype, f"{self.url}/{key}")
