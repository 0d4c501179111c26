"""A finished store, open for reading: its manifest, norms, rows by id, provenance, and streams.

Opening reads the manifest and the rows column only, whatever the number of units. This module loads neither torch
nor zarr; `stream` and `tokenizer` load what they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actstore.errors import CorruptError, SiteError, SpecError
from actstore.format import layout as at
from actstore.format.dtypes import Int8Rows, decode_int8, numpy_dtype, to_float32
from actstore.format.manifest import read_manifest
from actstore.format.shard import ABSENT, ShardCodec, ShardIndex, decode_plain
from actstore.format.storage import Storage
from actstore.rowids import Asked, ids_of, pieces
from schemas.harvest import Layout
from schemas.manifest import NormStats, StoreManifest, UnitRecord
from schemas.source import Site

if TYPE_CHECKING:
    from actstore.harvesting.norms import UnitStats
    from actstore.stream.batches import Stream
    from schemas.stream import StreamSpec

Rows = NDArray[np.int64]


class Provenance(NamedTuple):
    """Where rows come from: global sequence number, position in it, token id; int64 [n] each.

    Of an imported store without tokens all tokens are -1; without contexts, `sequence` is the row's number in
    its source.
    """

    sequence: Rows
    position: Rows
    token: Rows


def open(url: str | Path, options: dict[str, Any] | None = None, *, follow: bool = False) -> Store:  # noqa: A001
    """Open a finished store at any fsspec URL; `options` go to the file system.

    With `follow`, a store that is still being harvested: waits until its first group of units is committed, and can be
    streamed with `StreamSpec(follow=True)` (see `stream/follow.py`).

    Raises NotAStoreError, UnfinishedError (a harvest that has not ended), FormatVersionError (written by a newer
    actstore) or CorruptError.
    """
    if follow:
        from actstore.stream.follow import open_followed

        return open_followed(url, options)
    storage = Storage(str(url), options)
    return Store(storage, read_manifest(storage))


class Store:
    """A finished store. Row id = unit * capacity + slot; the same id is the same token at every site."""

    def __init__(self, storage: Storage, manifest: StoreManifest) -> None:
        self.storage = storage
        self.manifest = manifest
        self.layout: Layout = manifest.layout
        self.sites: tuple[str, ...] = tuple(site.name for site in manifest.sites)
        self.norms: dict[str, NormStats] = {norms.site: norms for norms in manifest.norms}
        self._by_name = {site.name: site for site in manifest.sites}
        self._indexes: dict[tuple[str, int], ShardIndex] = {}

    def __repr__(self) -> str:
        m = self.manifest
        sites = f"{len(m.sites)} sites of d {', '.join(map(str, sorted({site.d for site in m.sites})))}"
        return f"Store({self.url!r}: {m.spec.model.name}, {sites}, {m.n_rows:,} rows each, {m.spec.dtype})"

    def _repr_html_(self) -> str:
        from actstore.notebook import table
        from actstore.share.info import describe

        return table(f"Store {self.url}", describe(self)[1:])

    @property
    def url(self) -> str:
        return self.storage.url

    def site(self, name: str) -> Site:
        """A site by name. Raises SiteError with the sites there are."""
        if name not in self._by_name:
            import difflib

            near = difflib.get_close_matches(name, self.sites, 3, 0.5) or list(self.sites[:3])
            raise SiteError(f"{self.url}: no site {name!r} in this store; the nearest are {', '.join(near)}")
        return self._by_name[name]

    @cached_property
    def unit_rows(self) -> NDArray[np.int32]:
        """Valid rows of each unit, int32 [n_units]; they are its first slots."""
        n = self.manifest.n_units
        key = at.chunk_key(f"{at.columns_prefix(self._newest)}/rows", 0)
        return decode_plain(self.storage.read(key), (n,), np.int32, f"{self.url}/{key}")

    def units(self, split: str | None = None) -> list[int]:
        """Units of a split ("train", "held_out"), or all of them."""
        every = range(self.manifest.n_units)
        return [unit for unit in every if split is None or at.held_out(unit) == (split == "held_out")]

    def rows(self, split: str | None = None) -> Rows:
        """Ids of all valid rows of a split, in store order: int64 [n]."""
        counts, capacity = self.unit_rows, self.layout.capacity
        parts = [np.arange(counts[unit], dtype=np.int64) + unit * capacity for unit in self.units(split)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def codec(self, site: str) -> ShardCodec:
        """How a site's rows are stored."""
        spec = self.manifest.spec
        return ShardCodec(
            spec.codec, numpy_dtype(spec.dtype), self.layout.chunk_rows, self.site(site).d, self.layout.unit_chunks
        )

    def record(self, unit: int) -> UnitRecord:
        """A unit's commit record: its objects over all generations, their sizes and digests."""
        found = [UnitRecord.model_validate_json(self.storage.read(key)) for key in self.record_keys(unit)]
        objects = {key: one for record in found for key, one in record.objects.items()}
        return found[0].model_copy(update={"objects": objects})

    def record_keys(self, unit: int) -> list[str]:
        """Keys of a unit's commit records, one for each generation that has it."""
        spans = [range(g.first_unit, g.first_unit + g.n_units) for g in self.manifest.generations]
        return [at.unit_key(unit, i) for i, span in enumerate(spans) if unit in span]

    def before(self, n_generations: int) -> Store:
        """The store as it was when it had its first generations only: what a stream that began then goes on with."""
        from actstore.harvesting.finish import content_id
        from actstore.harvesting.norms import UnitStats

        m, kept = self.manifest, self.manifest.generations[:n_generations]
        n_units = max(g.first_unit + g.n_units for g in kept)
        sites = tuple(site for g in kept if g.first_unit == 0 for site in g.sites)
        key = at.merged_stats_key(n_generations - 1)
        stats = UnitStats.from_bytes(sites, self.storage.read(key), f"{self.url}/{key}")
        rows = self.unit_rows[:n_units].astype(np.int64)
        training = [unit for unit in range(n_units) if not at.held_out(unit)]
        update = {
            "content_id": content_id(kept),
            "sites": sites,
            "generations": kept,
            "n_units": n_units,
            "n_sequences": sum(g.n_sequences for g in kept if g.first_unit > 0 or g is kept[0]),
            "n_rows": int(rows.sum()),
            "n_train_rows": int(rows[training].sum()),
            "norms": stats.norms(),
        }
        return Store(self.storage, m.model_copy(update=update))

    @property
    def _newest(self) -> int:
        return len(self.manifest.generations) - 1

    def index(self, site: str, unit: int) -> ShardIndex:
        """Where the chunks of a unit lie in its shard; read once."""
        if (site, unit) not in self._indexes:
            key, codec = at.chunk_key(at.acts_key(site), unit, 0), self.codec(site)
            raw = self.storage.read_ranges(key, [(-codec.index_bytes, codec.index_bytes)])[0]
            try:
                self._indexes[site, unit] = codec.read_index(raw)
            except CorruptError as error:
                raise CorruptError(f"{self.url}/{key}: {error}; `actstore verify` lists every bad object") from error
        return self._indexes[site, unit]

    def read(self, site: str, rows: Asked = None) -> NDArray[np.float32]:
        """Activations of a site, float32 [n, d]; they take n * d * 4 bytes, and `read_pieces` is for more than fits.

        rows: ids, read in their order; or a slice of all valid rows in store order, `slice(0, 1000)`; or None: all.
        Raises SiteError, or IndexError for ids that do not exist.
        """
        ids = ids_of(self, rows)
        out = np.empty((len(ids), self.site(site).d), np.float32)
        for unit, where in self._by_unit(ids):
            slots = ids[where] - unit * self.layout.capacity
            values = self._read_slots(site, unit, slots)
            out[where] = self._widen(site, unit, slots, values)
        return out

    def read_pieces(self, site: str, rows: Asked = None, size: int = 65_536) -> Iterator[NDArray[np.float32]]:
        """What `read` gives, in pieces of `size` rows (the last may be smaller), one after the other."""
        for ids in pieces(self, rows, size):
            yield self.read(site, ids)

    def read_unit(self, site: str, unit: int) -> NDArray[np.float32]:
        """All valid rows of a unit in slot order, float32 [n_rows, d]."""
        return self.read(site, np.arange(self.unit_rows[unit]) + unit * self.layout.capacity)

    def read_norms(self, site: str, rows: Asked = None) -> NDArray[np.float32]:
        """L2 norms of stored rows (see `read`), float32 [n], without decoding activations."""
        self.site(site)
        ids = ids_of(self, rows)
        out = np.empty(len(ids), np.float32)
        for unit, where in self._by_unit(ids):
            key = at.chunk_key(at.norm_key(site), unit)
            out[where] = self._plain(key, (self.layout.capacity,), np.float32)[ids[where] % self.layout.capacity]
        return out

    def provenance(self, rows: Asked = None) -> Provenance:
        """(sequence, position, token) of rows (see `read`), the same for every site."""
        ids = ids_of(self, rows)
        pairs = np.empty((len(ids), 2), np.int64)
        tokens = np.empty(len(ids), np.int64)
        size = self.layout.unit_sequences
        for unit, where in self._by_unit(ids):
            key = at.chunk_key("rows", unit, 0)
            here = self._plain(key, (self.layout.capacity, 2), np.int32)[ids[where] % self.layout.capacity]
            pairs[where] = here
            tokens[where] = self._block(unit)[here[:, 0] - unit * size, here[:, 1]]
        return Provenance(pairs[:, 0], pairs[:, 1], tokens)

    def tokens(self, sequences: ArrayLike) -> NDArray[np.int32]:
        """Token ids of sequences, int32 [n, context]; -1 is padding.

        Raises SpecError where the store was imported without tokens.
        """
        if not self.manifest.has_tokens:
            raise SpecError(f"{self.url}: this store was imported without tokens; import again with them (--tokens)")
        ids = np.asarray(sequences, np.int64)
        end = self.manifest.n_units * self.layout.unit_sequences
        if len(ids) and (ids.min() < 0 or ids.max() >= end):
            raise IndexError(f"sequences {ids.min()}..{ids.max()}: the store's units hold 0..{end - 1}")
        out = np.empty((len(ids), self.layout.context), np.int32)
        units = ids // self.layout.unit_sequences
        for unit in np.unique(units):
            where = units == unit
            out[where] = self._block(int(unit))[ids[where] % self.layout.unit_sequences]
        if len(out) and (out < 0).all(axis=1).any():
            raise IndexError(f"sequence {ids[(out < 0).all(axis=1)][0]}: its unit ends before it")
        return out

    @cached_property
    def statistics(self) -> UnitStats:
        """The merged statistics over training units, vectors and histograms included."""
        from actstore.harvesting.norms import UnitStats

        key = at.merged_stats_key(self._newest)
        return UnitStats.from_bytes(self.manifest.sites, self.storage.read(key), f"{self.url}/{key}")

    def mean(self, site: str) -> NDArray[np.float64]:
        """Mean activation over training rows, float64 [d]."""
        return self.statistics.sites[self.site(site).name].moments()[1]

    def variance(self, site: str) -> NDArray[np.float64]:
        """Variance of each channel over training rows, float64 [d]."""
        return self.statistics.sites[self.site(site).name].moments()[2]

    def tokenizer(self, *, trust_remote_code: bool = False) -> Any:
        """The model's tokenizer as kept in the store (transformers), or None where none was kept.

        trust_remote_code: run code that is kept with it, if it needs any. Raises ModelError where it cannot be read.
        """
        from actstore.harvesting.checkpoint import stored_tokenizer

        return stored_tokenizer(self.storage, self.manifest.spec.model.name, trust=trust_remote_code)

    def stream(
        self,
        spec: StreamSpec | None = None,
        *,
        device: Any = "cpu",
        threads: int | None = None,
        rank: int = 0,
        world: int = 1,
        on_corrupt: Literal["error", "skip"] = "error",
        **fields: Any,
    ) -> Stream:
        """Shuffled batches of training rows: `store.stream(batch=512, rescale="log")`.

        `fields` are those of a StreamSpec (`schemas/stream.py`) and override `spec`'s; `actstore.stream.batches.Stream`
        tells the rest. Raises SpecError for a field that does not exist or cannot be used.
        """
        from actstore.stream.batches import Stream
        from actstore.stream.setup import spec_with

        made = spec_with(spec, fields)
        return Stream(self, made, device=device, threads=threads, rank=rank, world=world, on_corrupt=on_corrupt)

    def int8_parts(self, site: str, unit: int) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """A unit's row scales [capacity] and channel mean and step [2, d], of an int8 store."""
        scale = self._plain(at.chunk_key(at.scale_key(site), unit), (self.layout.capacity,), np.float16)
        step = self._plain(at.chunk_key(at.step_key(site), unit, 0, 0), (1, 2, self.site(site).d), np.float32)
        return scale, step[0]

    def _by_unit(self, ids: Rows) -> Iterator[tuple[int, Rows]]:
        units = at.unit_of(ids, self.layout)
        for unit in np.unique(units):
            yield int(unit), np.flatnonzero(units == unit)

    def _read_slots(self, site: str, unit: int, slots: Rows) -> NDArray[Any]:
        codec, index = self.codec(site), self.index(site, unit)
        chunks = slots // codec.chunk_rows
        wanted = np.unique(chunks)
        key = at.chunk_key(at.acts_key(site), unit, 0)
        if (index.offset[wanted] == ABSENT).any():
            raise CorruptError(f"{self.url}/{key}: a chunk with valid rows is absent")
        ranges = [(int(index.offset[c]), int(index.length[c])) for c in wanted]
        decoded = np.empty((codec.chunk_rows, codec.d), codec.dtype)
        out = np.empty((len(slots), codec.d), codec.dtype)
        for chunk, raw in zip(wanted, self._ranges(key, ranges), strict=True):
            try:
                codec.decode_chunk(raw, decoded)
            except CorruptError as error:
                raise CorruptError(f"{self.url}/{key}: unit {unit}, site {site}, chunk {chunk}: {error}") from error
            here = chunks == chunk
            out[here] = decoded[slots[here] % codec.chunk_rows]
        return out

    def _ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for start in range(0, len(ranges), 16):
            yield from self.storage.read_ranges(key, ranges[start : start + 16])

    def _widen(self, site: str, unit: int, slots: Rows, values: NDArray[Any]) -> NDArray[np.float32]:
        if values.dtype != np.int8:
            return to_float32(values)
        scale, step = self.int8_parts(site, unit)
        return decode_int8(Int8Rows(values, scale[slots], step))

    def _block(self, unit: int) -> NDArray[np.int32]:
        shape = (self.layout.unit_sequences, self.layout.context)
        return self._plain(at.chunk_key("tokens", unit, 0), shape, np.int32)

    def _plain(self, key: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return decode_plain(self.storage.read(key), shape, dtype, f"{self.url}/{key}")
