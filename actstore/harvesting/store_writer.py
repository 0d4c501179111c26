"""Units become objects: permute, encode, digest, write; then the record whose presence
is the commit.

Order of writing: `plan.json` (conditional create), metadata, then per unit its token
block and block record, its objects, and last its unit record; after all units the
columns, the merged statistics and `manifest.json`. Whatever dies in between leaves
objects that no record names, and the next worker writes the same bytes again.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorruptError, ExistsError, StoreError
from actstore.format import (
    keys,
    object_records,
    object_sizes,
    permutation,
    zarr_metadata,
)
from actstore.format.dtypes import encode_int8, numpy_dtype, to_float32
from actstore.format.json_records import read_record
from actstore.format.manifest import read_plan
from actstore.format.manifest_checks import check_writable
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.shard import ShardCodec, decode_plain, encode_plain
from actstore.format.storage import Storage
from actstore.harvesting import finish
from actstore.harvesting.sealed_unit import SealedUnit
from actstore.store import committed_units
from schemas.base import differences
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, Claim, ObjectRecord, StoreManifest, UnitRecord


def check_unfinished(storage: Storage) -> None:
    """Raises ExistsError where a finished store lies."""
    if storage.exists(keys.MANIFEST):
        raise ExistsError(
            f"{storage.url}: a finished store is already there; choose another place,"
            " remove it, or add to it with `actstore extend` (to one that was"
            " harvested)"
        )


def _as_begun(plan: Plan, found: Plan) -> Plan:
    """A plan as the one that was found says the same: what was begun in an older format
    is ended in it.
    """
    spec = plan.spec
    if (spec.separator, found.spec.separator) == (
        "auto",
        "bos_if_any",
    ) and plan.separator_token is None:
        spec = spec.model_copy(update={"separator": "bos_if_any"})
    return plan.model_copy(update={"format_minor": found.format_minor, "spec": spec})


class StoreWriter:
    """Writes one generation of a store from its plan. Use `create`; `close` ends its
    threads.
    """

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        threads: int | None = None,
        parent: StoreManifest | None = None,
    ) -> None:
        self.storage = storage
        self.plan = plan
        self.parent = parent
        self._dtype = numpy_dtype(plan.spec.dtype)
        threads = threads or os.cpu_count() or 1
        # Sites side by side keep both the encoder and the disk busy; a few sites alone
        # also split into chunks.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        few = len(plan.sites) < threads
        self._chunk_pool = (
            ThreadPoolExecutor(threads, thread_name_prefix="chunk") if few else None
        )

    @classmethod
    def create(
        cls,
        storage: Storage,
        plan: Plan,
        tokenizer_files: dict[str, bytes] | None = None,
        threads: int | None = None,
        parent: StoreManifest | None = None,
    ) -> StoreWriter:
        """Start a store (or, with `parent`, an extension of one), or join what the same
        plan has started.

        Raises ExistsError where something else lies there: a finished store, another
        plan, other files; SpecError where a store of this plan could not be opened
        again.
        """
        if parent is None:
            check_unfinished(storage)
        check_writable(plan)
        key = keys.plan_key(plan.generation)
        if not storage.exists(key):
            # Another worker creates its plan before anything else, so look for the plan
            # once more behind the files.
            if (
                parent is None
                and not storage.is_empty()
                and storage.list()
                and not storage.exists(key)
            ):
                raise ExistsError(
                    f"{storage.url}: it is not empty and no unfinished store; choose"
                    " another place"
                )
            storage.create(key, plan.to_json().encode())
        found = read_plan(storage, plan.generation)
        plan = _as_begun(plan, found)
        if differing := differences(plan, found):
            raise ExistsError(
                f"{storage.url}: another harvest was started there; it differs in"
                f" {'; '.join(differing)}. Give the same options to resume it, or"
                " choose another place"
            )
        writer = cls(storage, plan, threads, parent)
        writer._write_metadata(tokenizer_files or {})
        return writer

    def close(self) -> None:
        self._pool.shutdown()
        if self._chunk_pool is not None:
            self._chunk_pool.shutdown()

    def codec(self, d: int) -> ShardCodec:
        """How a site of width d is stored."""
        return object_sizes.codec(self.plan.spec, self.plan.layout, d)

    def committed_blocks(self) -> dict[int, BlockRecord]:
        """Records of the token blocks that are there, by unit."""
        return committed_units.committed_blocks(self.storage)

    def committed_block(self, unit: int) -> BlockRecord | None:
        """One token block's record, if it is there by now."""
        key = keys.block_key(unit)
        return (
            read_record(self.storage, key, BlockRecord, SMALL_JSON)
            if self.storage.exists(key)
            else None
        )

    def committed_units(self) -> set[int]:
        """Units whose record is there."""
        return committed_units.committed_units(self.storage, self.plan.generation)

    def is_committed(self, unit: int) -> bool:
        """Whether a unit's record is there by now."""
        return self.storage.exists(keys.unit_key(unit, self.plan.generation))

    def missing_units(self) -> int | None:
        """Units that this generation still lacks; None while the corpus' end is not
        known.
        """
        wanted = committed_units.wanted_units(self.storage, self.plan, self.parent)
        return None if wanted is None else len(set(wanted) - self.committed_units())

    def claimed(self, unit: int) -> int | None:
        """Sequences per forward that were settled for a unit, where the planned batch
        did not fit.
        """
        key = keys.claim_key(unit)
        return (
            read_record(self.storage, key, Claim, SMALL_JSON).batch
            if self.storage.exists(key)
            else None
        )

    def claim(self, unit: int, batch: int) -> int:
        """Settle a unit's batch, the same for every worker: the smallest one asked for."""
        key, data = keys.claim_key(unit), Claim(batch=batch).to_json().encode()
        if not self.storage.create(key, data) and (self.claimed(unit) or batch) > batch:
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
        """Write a unit's tokens, int32 [n_sequences, context] with -1 for padding, and
        their record.
        """
        layout = self.plan.layout
        data = encode_plain(
            tokens.astype(np.int32), (layout.unit_sequences, layout.context), -1
        )
        record = BlockRecord(
            unit=unit,
            n_sequences=len(tokens),
            n_tokens=int(np.count_nonzero(tokens >= 0)),
            tokens=object_records.put(
                self.storage, keys.chunk_key("tokens", unit, 0), data
            ),
            cursor=cursor,
            last=last,
            skipped_documents=skipped_documents,
        )
        self.storage.create(keys.block_key(unit), record.to_json().encode())
        return record

    def block_tokens(self, record: BlockRecord) -> NDArray[np.int32]:
        """The tokens of a committed block, int32 [n_sequences, context]."""
        layout = self.plan.layout
        key = keys.chunk_key("tokens", record.unit, 0)
        shape = (layout.unit_sequences, layout.context)
        data = self.storage.read(key, object_sizes.plain(shape, 4))
        if object_records.object_record(data) != record.tokens:
            raise CorruptError(
                f"{self.storage.url}/{key}: its bytes are not those recorded in"
                f" {keys.block_key(record.unit)}; harvest to another place"
            )
        return decode_plain(data, shape, np.int32, key)[: record.n_sequences]

    def commit_unit(self, unit: SealedUnit, block: BlockRecord) -> UnitRecord:
        """Write a unit's objects, then its record.

        Another worker may have committed the unit meanwhile. Its bytes are the same,
        unless the machines compute differently; then its record is withdrawn, for the
        objects are now these.
        """
        record = self._write_unit(unit, block)
        key, data = (
            keys.unit_key(unit.unit, self.plan.generation),
            record.to_json().encode(),
        )
        if not self.storage.create(key, data) and self.storage.read(key) != data:
            self.storage.delete(key)
            self._write_unit(unit, block)
            self.storage.create(key, data)
        return record

    def finish(self) -> StoreManifest:
        """Columns, merged statistics, manifest. Raises UnfinishedError while a unit is
        missing.
        """
        return finish.finish(self.storage, self.plan, self.parent)

    def _write_unit(self, unit: SealedUnit, block: BlockRecord) -> UnitRecord:
        n = len(unit.rows)
        order = permutation.unit_permutation(self.plan.spec.seed, unit.unit, n)
        first = (
            {}
            if self.plan.adds_sites
            else {keys.chunk_key("tokens", unit.unit, 0): block.tokens}
        )
        objects: dict[str, ObjectRecord] = dict(first)
        for written in self._pool.map(
            lambda site: self._write_site(site.name, unit, order), self.plan.sites
        ):
            objects |= written
        if not self.plan.adds_sites:
            key = keys.chunk_key("rows", unit.unit, 0)
            rows = encode_plain(
                unit.rows[order].astype(np.int32), (self.plan.layout.capacity, 2), -1
            )
            objects[key] = object_records.put(self.storage, key, rows)
        key = keys.unit_stats_key(unit.unit, self.plan.generation)
        objects[key] = object_records.put(self.storage, key, unit.stats.to_bytes())
        return UnitRecord(
            unit=unit.unit, n_sequences=unit.n_sequences, n_rows=n, objects=objects, batch=unit.batch
        )  # fmt: skip

    def _write_site(
        self, site: str, unit: SealedUnit, order: NDArray[np.int64]
    ) -> dict[str, ObjectRecord]:
        layout, values, objects = self.plan.layout, unit.sites[site], {}
        # where each slot's row lies in `values`
        moved = np.arange(len(order)) if unit.permuted else order
        if self.plan.spec.dtype == "int8":
            coded = encode_int8(to_float32(values))
            values = coded.values
            scale = encode_plain(coded.scale[moved], (layout.capacity,), 0)
            step = encode_plain(coded.step[None], (1, *coded.step.shape), 0)
            for key, data in (
                (keys.chunk_key(keys.scale_key(site), unit.unit), scale),
                (keys.chunk_key(keys.step_key(site), unit.unit, 0, 0), step),
            ):
                objects[key] = object_records.put(self.storage, key, data)
        if values.dtype != self._dtype:
            raise StoreError(
                f"{site}: rows are {values.dtype}, the plan stores {self._dtype}"
            )
        key = keys.chunk_key(keys.acts_key(site), unit.unit, 0)
        shard = self.codec(values.shape[1]).encode(values, moved, self._chunk_pool)
        objects[key] = object_records.put(self.storage, key, shard)
        key = keys.chunk_key(keys.norm_key(site), unit.unit)
        norms = encode_plain(
            unit.norms[site][order].astype(np.float32), (layout.capacity,), 0
        )
        objects[key] = object_records.put(self.storage, key, norms)
        return objects

    def _write_metadata(self, tokenizer_files: dict[str, bytes]) -> None:
        plan = self.plan
        if plan.generation:  # the groups say what the manifest says until the end
            # arrays grow: no open reader looks
            write = self.storage.create if plan.adds_sites else self.storage.put
            for key, data in zarr_metadata.files(zarr_metadata.arrays(plan)).items():
                write(key, data)
            return
        files = zarr_metadata.metadata_files(plan) | {
            f"tokenizer/{name}": one for name, one in tokenizer_files.items()
        }
        for key, data in {**files, "README.md": zarr_metadata.readme(plan)}.items():
            self.storage.create(key, data)
