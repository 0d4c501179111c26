"""Units become objects: permute, encode, digest, write; then the record whose presence is the commit.

Order of writing: `plan.json` (conditional create), metadata, then per unit its token block and block record, its
objects, and last its unit record; after all units the columns, the merged statistics and `manifest.json`.
Whatever dies in between leaves objects that no record names, and the next worker writes the same bytes again.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from actstore.errors import ExistsError, StoreError, UnfinishedError
from actstore.format import layout as at
from actstore.format.dtypes import encode_int8, numpy_dtype, to_float32
from actstore.format.shard import ShardCodec, decode_plain, encode_plain, plain_metadata
from actstore.format.storage import Buffers, Storage
from actstore.harvesting.norms import UnitStats
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, Generation, ObjectRecord, StoreManifest, UnitRecord

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
README = """# A store of language-model activations

Written by actstore, format version {version}. It is a Zarr v3 group: `acts/<site>` holds the activations, `norm/<site>`
their L2 norms, `rows` the (sequence, position) of each row, `tokens` the token ids. `manifest.json` says the rest.

Model: {model}. Corpus: {corpus}. Sites: {sites}.

    import actstore
    store = actstore.open("this folder")
    x = store.read(store.sites[0], [0, 1, 2])

With zarr-python 3.1, `import actstore.format.zarr_bfloat16` first if the values are bfloat16.
"""


@dataclass(frozen=True, slots=True)
class UnitRows:
    """One unit, before its permutation.

    rows: int32 [n, 2], (sequence, position) in that order; sites: by name [n, d] in the storage dtype (for int8:
    float32); norms: by name float32 [n].
    """

    unit: int
    n_sequences: int
    rows: NDArray[np.int32]
    sites: dict[str, NDArray[Any]]
    norms: dict[str, NDArray[np.float32]]
    stats: UnitStats
    batch: int | None = None


class StoreWriter:
    """Writes one store from its plan. Use `create`; `close` ends its threads."""

    def __init__(self, storage: Storage, plan: Plan, threads: int | None = None) -> None:
        self.storage = storage
        self.plan = plan
        self._dtype = numpy_dtype(plan.spec.dtype)
        threads = threads or os.cpu_count() or 1
        # Sites side by side keep both the encoder and the disk busy; a few sites alone also split into chunks.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        few = len(plan.sites) < threads
        self._chunk_pool = ThreadPoolExecutor(threads, thread_name_prefix="chunk") if few else None

    @classmethod
    def create(
        cls, storage: Storage, plan: Plan, tokenizer_files: dict[str, bytes] | None = None, threads: int | None = None
    ) -> StoreWriter:
        """Start a store, or join the one that the same plan has started.

        Raises ExistsError where something else lies there: a finished store, another plan, other files.
        """
        if storage.exists(at.MANIFEST):
            raise ExistsError(f"{storage.url}: a finished store is already there; choose another place or remove it")
        if not storage.exists(at.PLAN):
            if not storage.is_empty():
                raise ExistsError(f"{storage.url}: it is not empty and no unfinished store; choose another place")
            storage.create(at.PLAN, plan.to_json().encode())
        found = Plan.model_validate_json(storage.read(at.PLAN))
        if differing := differences(plan, found):
            raise ExistsError(
                f"{storage.url}: another harvest was started there; it differs in {'; '.join(differing)}. "
                "Give the same options to resume it, or choose another place"
            )
        writer = cls(storage, plan, threads)
        writer._write_metadata(tokenizer_files or {})
        return writer

    def close(self) -> None:
        self._pool.shutdown()
        if self._chunk_pool is not None:
            self._chunk_pool.shutdown()

    def codec(self, d: int) -> ShardCodec:
        """How a site of width d is stored."""
        layout = self.plan.layout
        return ShardCodec(self.plan.spec.codec, self._dtype, layout.chunk_rows, d, layout.unit_chunks)

    def committed_blocks(self) -> dict[int, BlockRecord]:
        """Records of the token blocks that are there, by unit."""
        keys = [key for key in self.storage.list("blocks") if key.endswith(".json")]
        records = (BlockRecord.model_validate_json(self.storage.read(key)) for key in keys)
        return {record.unit: record for record in records}

    def committed_units(self) -> set[int]:
        """Units whose record is there."""
        keys = self.storage.list("units")
        return {int(key.rsplit("/", 1)[1][:-5]) for key in keys if key.endswith(".json")}

    def commit_block(
        self, unit: int, tokens: NDArray[np.int32], cursor: dict[str, Any], last: bool, skipped_documents: int = 0
    ) -> BlockRecord:
        """Write a unit's tokens, int32 [n_sequences, context] with -1 for padding, and their record."""
        layout = self.plan.layout
        data = encode_plain(tokens.astype(np.int32), (layout.unit_sequences, layout.context), -1)
        record = BlockRecord(
            unit=unit,
            n_sequences=len(tokens),
            n_tokens=int(np.count_nonzero(tokens >= 0)),
            tokens=self._write(at.chunk_key("tokens", unit, 0), data),
            cursor=cursor,
            last=last,
            skipped_documents=skipped_documents,
        )
        self.storage.create(at.block_key(unit), record.to_json().encode())
        return record

    def block_tokens(self, record: BlockRecord) -> NDArray[np.int32]:
        """The tokens of a committed block, int32 [n_sequences, context]."""
        layout = self.plan.layout
        key = at.chunk_key("tokens", record.unit, 0)
        shape = (layout.unit_sequences, layout.context)
        return decode_plain(self.storage.read(key), shape, np.int32, key)[: record.n_sequences]

    def commit_unit(self, unit: UnitRows, block: BlockRecord) -> UnitRecord:
        """Write a unit's objects, then its record."""
        layout = self.plan.layout
        n = len(unit.rows)
        order = at.unit_permutation(self.plan.spec.seed, unit.unit, n)
        objects = {at.chunk_key("tokens", unit.unit, 0): block.tokens}
        for written in self._pool.map(lambda site: self._write_site(site.name, unit, order), self.plan.sites):
            objects |= written
        rows = encode_plain(unit.rows[order].astype(np.int32), (layout.capacity, 2), -1)
        for key, data in (
            (at.chunk_key("rows", unit.unit, 0), rows),
            (at.unit_stats_key(unit.unit), unit.stats.to_bytes()),
        ):
            objects[key] = self._write(key, data)
        record = UnitRecord(
            unit=unit.unit, n_sequences=unit.n_sequences, n_rows=n, objects=objects, batch=unit.batch
        )  # fmt: skip
        self.storage.create(at.unit_key(unit.unit), record.to_json().encode())
        return record

    def finish(self) -> StoreManifest:
        """Columns, merged statistics, manifest. Raises UnfinishedError while a unit is missing."""
        records = self._records()
        merged = UnitStats(self.plan.sites)
        sums = np.zeros((len(records), len(self.plan.sites), 2, 5))
        for i, record in enumerate(records):
            key = at.unit_stats_key(record.unit)
            stats = UnitStats.from_bytes(self.plan.sites, self.storage.read(key), key)
            for j, one in enumerate(stats.sites.values()):
                sums[i, j] = np.stack(one.arrays()[:5], axis=1)
            if not at.held_out(record.unit):
                merged.merge(stats)
        files = self._write_columns(records, sums)
        files[at.MERGED_STATS] = self._write(at.MERGED_STATS, merged.to_bytes())
        for key in [*self.storage.list("tokenizer"), "README.md", at.PLAN]:
            files[key] = object_record(self.storage.read(key))
        manifest = self._manifest(records, merged, files)
        self.storage.put(at.MANIFEST, manifest.to_json().encode())
        return manifest

    def _manifest(self, records: list[UnitRecord], merged: UnitStats, files: dict[str, ObjectRecord]) -> StoreManifest:
        plan, n_rows = self.plan, [record.n_rows for record in records]
        generation = Generation(
            plan=at.PLAN,
            units="units/",
            sites=plan.sites,
            n_units=len(records),
            n_sequences=sum(record.n_sequences for record in records),
            n_rows=sum(n_rows),
            plan_digest=files[at.PLAN].digest,
            units_digest=blake3(b"".join(record.to_json().encode() for record in records)).hexdigest(),
        )
        return StoreManifest(
            content_id=content_id((generation,)),
            spec=plan.spec,
            sites=plan.sites,
            layout=plan.layout,
            model=plan.model,
            numerics=plan.numerics,
            generations=(generation,),
            n_units=len(records),
            n_sequences=generation.n_sequences,
            n_rows=generation.n_rows,
            n_train_rows=sum(n for record, n in zip(records, n_rows, strict=True) if not at.held_out(record.unit)),
            n_bytes=sum(o.bytes for record in records for o in record.objects.values()),
            norms=merged.norms(),
            files=dict(sorted(files.items())),
        )

    def _records(self) -> list[UnitRecord]:
        blocks, done = self.committed_blocks(), self.committed_units()
        last = [unit for unit, block in blocks.items() if block.last]
        missing = sorted(set(range(last[0] + 1)) - done) if last else None
        if missing is None or missing:
            what = f"units {missing[:8]} are missing" if missing else "the corpus has not been read to its end"
            raise UnfinishedError(f"{self.storage.url}: {what}; run the same harvest again, it goes on from there")
        return [UnitRecord.model_validate_json(self.storage.read(at.unit_key(k))) for k in range(last[0] + 1)]

    def _write_columns(self, records: list[UnitRecord], sums: NDArray[np.float64]) -> dict[str, ObjectRecord]:
        digests = [blake3(record.to_json().encode()).digest() for record in records]
        columns: dict[str, NDArray[Any]] = {
            "rows": np.array([record.n_rows for record in records], dtype=np.int32),
            "bytes": np.array([sum(o.bytes for o in r.objects.values()) for r in records], dtype=np.int64),
            "digests": np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
            "sums": sums,
        }
        files = {"columns/zarr.json": self._write("columns/zarr.json", _json(GROUP))}
        for name, column in columns.items():
            key = f"columns/{name}"
            metadata = plain_metadata(column.shape, column.shape, column.dtype, 0)
            files[f"{key}/zarr.json"] = self._write(f"{key}/zarr.json", _json(metadata))
            chunk = at.chunk_key(key, *([0] * column.ndim))
            files[chunk] = self._write(chunk, encode_plain(column, column.shape, 0))
        return files

    def _write_site(self, site: str, unit: UnitRows, order: NDArray[np.int64]) -> dict[str, ObjectRecord]:
        layout, values, objects = self.plan.layout, unit.sites[site], {}
        if self.plan.spec.dtype == "int8":
            coded = encode_int8(to_float32(values))
            values = coded.values
            scale = encode_plain(coded.scale[order], (layout.capacity,), 0)
            step = encode_plain(coded.step[None], (1, *coded.step.shape), 0)
            for key, data in (
                (at.chunk_key(at.scale_key(site), unit.unit), scale),
                (at.chunk_key(at.step_key(site), unit.unit, 0, 0), step),
            ):
                objects[key] = self._write(key, data)
        if values.dtype != self._dtype:
            raise StoreError(f"{site}: rows are {values.dtype}, the plan stores {self._dtype}")
        key = at.chunk_key(at.acts_key(site), unit.unit, 0)
        objects[key] = self._write(key, self.codec(values.shape[1]).encode(values, order, self._chunk_pool))
        key = at.chunk_key(at.norm_key(site), unit.unit)
        norms = encode_plain(unit.norms[site][order].astype(np.float32), (layout.capacity,), 0)
        objects[key] = self._write(key, norms)
        return objects

    def _write(self, key: str, data: Buffers) -> ObjectRecord:
        record = object_record(data)
        self.storage.put(key, data)
        return record

    def _write_metadata(self, tokenizer_files: dict[str, bytes]) -> None:
        layout, spec = self.plan.layout, self.plan.spec
        shape = (layout.n_units * layout.unit_sequences, layout.context)
        arrays = {
            "tokens": plain_metadata(shape, (layout.unit_sequences, layout.context), np.int32, -1),
            "rows": plain_metadata((layout.n_slots, 2), (layout.capacity, 2), np.int32, -1),
        }
        for site in self.plan.sites:
            arrays[at.acts_key(site.name)] = self.codec(site.d).metadata(layout.n_slots)
            arrays[at.norm_key(site.name)] = plain_metadata((layout.n_slots,), (layout.capacity,), np.float32, 0)
            if spec.dtype == "int8":
                steps = (layout.n_units, 2, site.d)
                arrays[at.scale_key(site.name)] = plain_metadata((layout.n_slots,), (layout.capacity,), np.float16, 0)
                arrays[at.step_key(site.name)] = plain_metadata(steps, (1, 2, site.d), np.float32, 0)
        groups = {"", *(key.split("/")[0] + "/" for key in arrays if "/" in key)}
        files = {f"{group}zarr.json": _json(GROUP) for group in groups}
        files |= {f"{key}/zarr.json": _json(metadata) for key, metadata in arrays.items()}
        files |= {f"tokenizer/{name}": data for name, data in tokenizer_files.items()}
        names = ", ".join(site.name for site in self.plan.sites)
        files["README.md"] = README.format(
            version=self.plan.format_version, model=spec.model.name, corpus=spec.corpus.name, sites=names
        ).encode()
        for key, data in files.items():
            self.storage.create(key, data)


def object_record(data: Buffers) -> ObjectRecord:
    """Size and blake3 digest of an object's bytes."""
    parts = [data] if isinstance(data, bytes) else data
    digest = blake3()
    for part in parts:
        digest.update(part)
    return ObjectRecord(bytes=sum(len(part) for part in parts), digest=digest.hexdigest())


def content_id(generations: tuple[Generation, ...]) -> str:
    """blake3 over the digests of the plans and of their units' records, in order of generation."""
    text = "".join(f"{g.plan_digest}{g.units_digest}" for g in generations)
    return blake3(text.encode()).hexdigest()


def differences(wanted: Plan, found: Plan) -> list[str]:
    """Fields in which two plans differ, as `name: wanted x, found y`."""

    def walk(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            keys = sorted({*a, *b})
            return [line for key in keys for line in walk(a.get(key), b.get(key), f"{path}.{key}" if path else key)]
        return [] if a == b else [f"{path}: wanted {a!r}, there is {b!r}"]

    return walk(wanted.model_dump(mode="json"), found.model_dump(mode="json"), "")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
