"""Writes the objects of units, and then the records that commit them.

A unit is permuted, encoded, digested and written; the presence of its record is the
commit.

Order of writing: `plan.json` (created only where there is none), metadata, then for
each unit its token block and block record, its objects, and last its unit record; after
all units the columns, the merged statistics and `manifest.json`. A worker that dies in
between leaves objects that no record names, and the next one writes the same bytes
again.
"""

from __future__ import annotations

import os
from collections.abc import Container
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ExistsError, StoreError
from actstore.format import (
    object_keys,
    object_records,
    object_sizes,
    permutation,
    zarr_metadata,
)
from actstore.format.json_records import read_record
from actstore.format.manifest import read_manifest, read_plan
from actstore.format.manifest_checks import check_writable
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.shard import ShardCodec, decode_plain, encode_plain
from actstore.format.storage import Storage
from actstore.format.stored_dtypes import encode_int8, numpy_dtype, to_float32
from actstore.harvesting.finish_store import finish_generation
from actstore.harvesting.sealed_unit import SealedUnit
from actstore.harvesting.uploads import UPLOADS_SHARE, Uploads
from actstore.store import committed_units
from schemas.base import differences
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, Claim, ObjectRecord, StoreManifest, UnitRecord


def check_unfinished(storage: Storage) -> None:
    """Raise ExistsError where a finished store lies.

    Raises:
        CorruptError: Something answers that is no manifest: to remove that, or to go on
            there, is no advice.
    """
    if storage.exists(object_keys.MANIFEST):
        read_manifest(storage)
        raise ExistsError(
            f"{storage.url}: a finished store is already there; choose another place,"
            " remove it, or add to it with `actstore extend` (to one that was"
            " harvested)"
        )


class BegunUnit(NamedTuple):
    """A unit whose objects are encoded and on their way to the storage.

    Attributes:
        unit: The unit.
        block: The record of its token block.
        objects: Its objects, by key, each there when its record comes.
    """

    unit: SealedUnit
    block: BlockRecord
    objects: dict[str, Future[ObjectRecord]]


class StoreWriter:
    """Writes one generation of a store from its plan.

    `create` starts a store or joins what others have started; `close` ends the threads.

    Attributes:
        storage: Where the store is.
        plan: The generation's.
        parent: The manifest of the store that the generation adds to; None: it is the
            first.
    """

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        threads: int | None = None,
        parent: StoreManifest | None = None,
    ) -> None:
        """Make a writer of a store whose plan is written.

        `threads` encode; None: one for each core.
        """
        self.storage = storage
        self.plan = plan
        self.parent = parent
        self._tokenizer_keys: list[str] = []
        self._dtype = numpy_dtype(plan.spec.dtype)
        threads = threads or os.cpu_count() or 1
        # Writing several sites at once keeps both the encoder and the disk busy. A few
        # sites alone leave cores idle, so their shards are split into chunks as well.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._uploads = Uploads(storage, plan.spec.memory // UPLOADS_SHARE)
        self._chunk_pool = None
        if len(plan.sites) < threads:
            self._chunk_pool = ThreadPoolExecutor(threads, thread_name_prefix="chunk")

    @classmethod
    def create(
        cls,
        storage: Storage,
        plan: Plan,
        tokenizer_files: dict[str, bytes] | None = None,
        threads: int | None = None,
        parent: StoreManifest | None = None,
    ) -> StoreWriter:
        """Start a store, or join what the same plan has started.

        Args:
            storage: Where the store is, or will be.
            plan: What is going to be harvested.
            tokenizer_files: The tokenizer's files that the store keeps, by name.
            threads: How many threads encode; None: one for each core.
            parent: The manifest of the store that is extended; None: it is a new one.

        Raises:
            ExistsError: Something else lies there: a finished store, another plan,
                other files.
            SpecError: A store of this plan could not be opened again.
        """
        if parent is None:
            check_unfinished(storage)
        check_writable(plan)
        plan_key = object_keys.plan_key(plan.generation)
        if not storage.exists(plan_key):
            if parent is None:
                _check_empty(storage, plan_key)
            storage.create(plan_key, plan.to_json().encode())
        # Another worker's plan may have been the first.
        begun = read_plan(storage, plan.generation)
        plan = _in_format_of(begun, plan)
        differing = differences(plan, begun)
        if differing:
            raise ExistsError(
                f"{storage.url}: another harvest was started there; it differs in"
                f" {'; '.join(differing)}. Give the same options to resume it, or"
                " choose another place"
            )
        writer = cls(storage, plan, threads, parent)
        writer._write_metadata(tokenizer_files or {})
        return writer

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
        if self._chunk_pool is not None:
            self._chunk_pool.shutdown()
        self._uploads.close()

    def codec(self, d: int) -> ShardCodec:
        """Return how the shards of a site of width d are encoded."""
        return object_sizes.codec(self.plan.spec, self.plan.layout, d)

    def committed_blocks(
        self, units: Container[int] | None = None
    ) -> dict[int, BlockRecord]:
        """Return the records of the token blocks that are there, by unit.

        units: Only these, and only what a listing shows; None: all of them.
        """
        return committed_units.committed_blocks(self.storage, units)

    def listed_blocks(self) -> set[int]:
        """Return the units whose token block a listing shows; it may lag."""
        return committed_units.listed_blocks(self.storage)

    def committed_block(self, unit: int) -> BlockRecord | None:
        """Return the record of a unit's token block, if it is there by now."""
        key = object_keys.block_key(unit)
        if not self.storage.exists(key):
            return None
        return read_record(self.storage, key, BlockRecord, SMALL_JSON)

    def committed_units(self) -> set[int]:
        """Return the units whose record is there."""
        return committed_units.committed_units(self.storage, self.plan.generation)

    def is_committed(self, unit: int) -> bool:
        """Return whether a unit's record is there by now."""
        return self.storage.exists(object_keys.unit_key(unit, self.plan.generation))

    def missing_units(self) -> int | None:
        """Return how many units this generation still lacks.

        None while it is not known where the corpus ends.
        """
        wanted = committed_units.wanted_units(self.storage, self.plan, self.parent)
        if wanted is None:
            return None
        generation = self.plan.generation
        return len(committed_units.missing_units(self.storage, generation, wanted))

    def claimed(self, unit: int) -> int | None:
        """Return the sequences per forward that were settled for a unit.

        None where the planned batch holds.
        """
        key = object_keys.claim_key(unit)
        if not self.storage.exists(key):
            return None
        return read_record(self.storage, key, Claim, SMALL_JSON).batch

    def claim(self, unit: int, batch: int) -> int:
        """Settle a unit's sequences per forward, the same for every worker.

        Returns the smallest number that any worker has asked for.
        """
        key = object_keys.claim_key(unit)
        data = Claim(batch=batch).to_json().encode()
        is_first = self.storage.create(key, data)
        if not is_first and (self.claimed(unit) or batch) > batch:
            self.storage.put(key, data)
        return min(batch, self.claimed(unit) or batch)

    def commit_block(
        self,
        unit: int,
        tokens: NDArray[np.int32],
        cursor: dict[str, Any],
        last: bool,
        skipped_documents: int = 0,
    ) -> BlockRecord:
        """Write a unit's token block and its record.

        Args:
            unit: Which unit of the store.
            tokens: int32 [n_sequences, context], -1 where there is padding.
            cursor: Where in the corpus the next block starts.
            last: Whether the corpus, or the harvest, ends with this block.
            skipped_documents: How many documents were left out while it was read.
        """
        record = self.put_block(unit, tokens, cursor, last, skipped_documents)
        self.create_block_record(record)
        return record

    def put_block(
        self,
        unit: int,
        tokens: NDArray[np.int32],
        cursor: dict[str, Any],
        last: bool,
        skipped_documents: int,
    ) -> BlockRecord:
        """Write a unit's tokens; return the record that commits them."""
        layout = self.plan.layout
        shape = (layout.unit_sequences, layout.context)
        key = object_keys.chunk_key("tokens", unit, 0)
        data = encode_plain(tokens.astype(np.int32), shape, -1)
        return BlockRecord(
            unit=unit,
            n_sequences=len(tokens),
            n_tokens=int(np.count_nonzero(tokens >= 0)),
            tokens=object_records.put(self.storage, key, data),
            cursor=cursor,
            last=last,
            skipped_documents=skipped_documents,
        )

    def create_block_record(self, record: BlockRecord) -> bool:
        """Write the record of a token block; return whether there was none."""
        key = object_keys.block_key(record.unit)
        return self.storage.create(key, record.to_json().encode())

    def block_tokens(self, record: BlockRecord) -> NDArray[np.int32]:
        """Read the tokens of a committed block, int32 [n_sequences, context].

        Raises:
            CorruptError: Its bytes are not those that were recorded.
        """
        layout = self.plan.layout
        key = object_keys.chunk_key("tokens", record.unit, 0)
        shape = (layout.unit_sequences, layout.context)
        data = self.storage.read(key, object_sizes.plain(shape, 4))
        # Else the store would hold rows of other tokens than it says.
        if object_records.object_record(data) != record.tokens:
            raise CorruptError(
                f"{self.storage.url}/{key}: its bytes are not those recorded in"
                f" {object_keys.block_key(record.unit)}; harvest to another place"
            )
        return decode_plain(data, shape, np.int32, key)[: record.n_sequences]

    def commit_unit(self, unit: SealedUnit, block: BlockRecord) -> UnitRecord:
        """Write a unit's objects, then its record."""
        return self.commit(self.begin(unit, block))

    def begin(self, unit: SealedUnit, block: BlockRecord) -> BegunUnit:
        """Encode a unit's objects and begin to write them.

        The unit's arrays must stay as they are until it is committed.
        """
        n_rows = len(unit.rows)
        order = permutation.unit_permutation(self.plan.spec.seed, unit.unit, n_rows)
        objects: dict[str, Future[ObjectRecord]] = {}
        # `map` gives them in the order of the sites, whichever is done first.
        for site_objects in self._pool.map(
            lambda site: self._write_site(site.name, unit, order), self.plan.sites
        ):
            objects.update(site_objects)
        # More sites are on tokens and rows that an earlier generation has recorded.
        if not self.plan.adds_sites:
            rows_key = object_keys.chunk_key("rows", unit.unit, 0)
            rows = unit.rows[order].astype(np.int32)
            rows_data = encode_plain(rows, (self.plan.layout.capacity, 2), -1)
            objects[rows_key] = self._uploads.put(rows_key, rows_data)
        stats_key = object_keys.unit_stats_key(unit.unit, self.plan.generation)
        objects[stats_key] = self._uploads.put(stats_key, unit.stats.to_bytes())
        return BegunUnit(unit, block, objects)

    def commit(self, begun: BegunUnit) -> UnitRecord:
        """Wait for a unit's objects, then write its record.

        Another worker may have committed the unit meanwhile. Its bytes are the same,
        unless the machines compute differently. Then its record is withdrawn, because
        the objects have become these.
        """
        unit, block, _ = begun
        record = self._record(begun)
        key = object_keys.unit_key(unit.unit, self.plan.generation)
        data = record.to_json().encode()
        is_first = self.storage.create(key, data)
        if not is_first and self.storage.read(key) != data:
            self.storage.delete(key)
            self._record(self.begin(unit, block))
            self.storage.create(key, data)
        return record

    def finish(self) -> StoreManifest:
        """Write columns, merged statistics and the manifest.

        Raises:
            UnfinishedError: A unit is missing.
        """
        return finish_generation(
            self.storage, self.plan, self.parent, self._tokenizer_keys
        )

    def _record(self, begun: BegunUnit) -> UnitRecord:
        """Wait for a unit's objects; return the record that commits them."""
        unit = begun.unit
        objects: dict[str, ObjectRecord] = {}
        if not self.plan.adds_sites:
            tokens_key = object_keys.chunk_key("tokens", unit.unit, 0)
            objects[tokens_key] = begun.block.tokens
        for key, written in begun.objects.items():
            objects[key] = written.result()
        return UnitRecord(
            unit=unit.unit,
            n_sequences=unit.n_sequences,
            n_rows=len(unit.rows),
            objects=objects,
            batch=unit.batch,
        )

    def _write_site(
        self, site: str, unit: SealedUnit, order: NDArray[np.int64]
    ) -> dict[str, Future[ObjectRecord]]:
        """Begin to write the objects of one site of a unit; return them by key.

        order: int64 [n], which of the unit's rows goes to each slot.
        """
        values = unit.values[site]
        objects: dict[str, Future[ObjectRecord]] = {}
        # Values that a GPU has permuted are in the order of the slots already.
        value_order = np.arange(len(order)) if unit.permuted else order
        if self.plan.spec.dtype == "int8":
            quantised = encode_int8(to_float32(values))
            values = quantised.values
            objects.update(
                self._write_quantisation(
                    site, unit.unit, quantised.scale[value_order], quantised.step
                )
            )
        if values.dtype != self._dtype:
            raise StoreError(
                f"{site}: rows are {values.dtype}, the plan stores {self._dtype}"
            )
        values_key = object_keys.chunk_key(object_keys.acts_key(site), unit.unit, 0)
        codec = self.codec(values.shape[1])
        shard = codec.encode(values, value_order, self._chunk_pool)
        objects[values_key] = self._uploads.put(values_key, shard)
        norms_key = object_keys.chunk_key(object_keys.norm_key(site), unit.unit)
        norms = unit.norms[site][order].astype(np.float32)
        norms_data = encode_plain(norms, (self.plan.layout.capacity,), 0)
        objects[norms_key] = self._uploads.put(norms_key, norms_data)
        return objects

    def _write_quantisation(
        self, site: str, unit: int, scale: NDArray[Any], step: NDArray[Any]
    ) -> dict[str, Future[ObjectRecord]]:
        """Begin to write what turns a unit's int8 values back into numbers.

        scale: of each row, in the order of the slots [n]; step: of each channel [d].
        """
        scale_key = object_keys.chunk_key(object_keys.scale_key(site), unit)
        scale_data = encode_plain(scale, (self.plan.layout.capacity,), 0)
        step_key = object_keys.chunk_key(object_keys.step_key(site), unit, 0, 0)
        step_data = encode_plain(step[None], (1, *step.shape), 0)
        return {
            scale_key: self._uploads.put(scale_key, scale_data),
            step_key: self._uploads.put(step_key, step_data),
        }

    def _write_metadata(self, tokenizer_files: dict[str, bytes]) -> None:
        """Write the `zarr.json` files; of a new store also tokenizer and README."""
        plan = self.plan
        if plan.generation > 0:
            # The groups say what the manifest says, so they are written with it. The
            # metadata of arrays that grow may change at once: no open reader looks.
            write = self.storage.create if plan.adds_sites else self.storage.put
            arrays = zarr_metadata.files(zarr_metadata.arrays(plan))
            for key, data in arrays.items():
                write(key, data)
            return
        files = zarr_metadata.metadata_files(plan)
        for name, data in tokenizer_files.items():
            files[f"tokenizer/{name}"] = data
        # At the end a listing may not show them yet.
        self._tokenizer_keys = [f"tokenizer/{name}" for name in tokenizer_files]
        files["README.md"] = zarr_metadata.readme(plan)
        for key, data in files.items():
            self.storage.create(key, data)


def _check_empty(storage: Storage, plan_key: str) -> None:
    """Raise ExistsError where files lie that no plan has begun."""
    if storage.is_empty() or not storage.list():
        return
    # Another worker creates its plan before anything else. Its plan may have come
    # after the first look and its files before this one, so look for the plan again.
    if storage.exists(plan_key):
        return
    raise ExistsError(
        f"{storage.url}: it is not empty and no unfinished store; choose another place"
    )


def _in_format_of(begun: Plan, plan: Plan) -> Plan:
    """Return a plan as the one that was begun would say it.

    A harvest that was begun in an older format is finished in that format. It says
    `bos_if_any` where no document ends with a separator, as `auto` may mean too.
    """
    spec = plan.spec
    if (
        spec.separator == "auto"
        and begun.spec.separator == "bos_if_any"
        and plan.separator_token is None
    ):
        spec = spec.model_copy(update={"separator": "bos_if_any"})
    return plan.model_copy(update={"format_minor": begun.format_minor, "spec": spec})
