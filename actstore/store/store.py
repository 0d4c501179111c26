"""A finished store, open for reading: its manifest, norms, rows by id, provenance, and
streams.

Opening reads the manifest and the rows column only, whatever the number of units. This
module loads neither torch nor zarr; `stream` and `tokenizer` load what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actstore.errors import SpecError
from actstore.format import keys
from actstore.format.content_id import content_id
from actstore.format.dtypes import Int8Rows, decode_int8, to_float32
from actstore.format.layout import held_out, unit_of
from actstore.format.storage import Storage
from actstore.store.row_ids import AskedRows, ids_of, pieces
from actstore.store.stored_objects import StoredObjects
from schemas.manifest import NormStats, StoreManifest

if TYPE_CHECKING:
    from actstore.format.statistics import UnitStats
    from actstore.stream.stream import Stream
    from schemas.stream import StreamSpec


RowIds = NDArray[np.int64]


class Provenance(NamedTuple):
    """Where rows come from: global sequence number, position in it, token id; int64 [n]
    each.

    Of an imported store without tokens all tokens are -1; without contexts, `sequence`
    is the row's number in its source.
    """

    sequence: RowIds
    position: RowIds
    token: RowIds


class Store(StoredObjects):
    """A finished store. Row id = unit * capacity + slot; the same id is the same token
    at every site.
    """

    def __init__(self, storage: Storage, manifest: StoreManifest) -> None:
        super().__init__(storage, manifest)
        self.norms: dict[str, NormStats] = {
            norms.site: norms for norms in manifest.norms
        }

    def __repr__(self) -> str:
        m = self.manifest
        sites = (
            f"{len(m.sites)} sites of d"
            f" {', '.join(map(str, sorted({site.d for site in m.sites})))}"
        )
        return (
            f"Store({self.url!r}: {m.spec.model.name}, {sites}, {m.n_rows:,} rows each,"
            f" {m.spec.dtype})"
        )

    def _repr_html_(self) -> str:
        from actstore.console.notebook import table
        from actstore.store.description import describe

        return table(f"Store {self.url}", describe(self)[1:])

    def units(self, split: str | None = None) -> list[int]:
        """Units of a split ("train", "held_out"), or all of them."""
        every = range(self.manifest.n_units)
        return [
            unit
            for unit in every
            if split is None or held_out(unit) == (split == "held_out")
        ]

    def rows(self, split: str | None = None) -> RowIds:
        """Ids of all valid rows of a split, in store order: int64 [n]."""
        counts, capacity = self.unit_rows, self.layout.capacity
        parts = [
            np.arange(counts[unit], dtype=np.int64) + unit * capacity
            for unit in self.units(split)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def before(self, n_generations: int) -> Store:
        """The store as it was when it had its first generations only: what a stream
        that began then goes on with.
        """
        from actstore.format.statistics import UnitStats

        m, kept = self.manifest, self.manifest.generations[:n_generations]
        n_units = max(g.first_unit + g.n_units for g in kept)
        sites = tuple(site for g in kept if g.first_unit == 0 for site in g.sites)
        key = keys.merged_stats_key(n_generations - 1)
        stats = UnitStats.from_bytes(sites, self.file(key), f"{self.url}/{key}")
        rows = self.unit_rows[:n_units].astype(np.int64)
        training = [unit for unit in range(n_units) if not held_out(unit)]
        update = {
            "content_id": content_id(kept),
            "sites": sites,
            "generations": kept,
            "n_units": n_units,
            "n_sequences": sum(
                g.n_sequences for g in kept if g.first_unit > 0 or g is kept[0]
            ),
            "n_rows": int(rows.sum()),
            "n_train_rows": int(rows[training].sum()),
            "norms": stats.norms(),
        }
        return Store(self.storage, m.model_copy(update=update))

    def read(self, site: str, rows: AskedRows = None) -> NDArray[np.float32]:
        """Activations of a site, float32 [n, d]; they take n * d * 4 bytes, and
        `read_pieces` is for more than fits.

        rows: ids, read in their order; or a slice of all valid rows in store order,
        `slice(0, 1000)`; or None: all. Raises SiteError, or IndexError for ids that do
        not exist.
        """
        ids, d = ids_of(self, rows), self.site(site).d
        out = np.empty((0, d), np.float32)
        for unit, where in self._by_unit(ids):
            slots = ids[where] - unit * self.layout.capacity
            values = self._widen(site, unit, slots, self.read_slots(site, unit, slots))
            # memory for all of them once the first are as wide as the manifest says
            if not len(out):
                out = np.empty((len(ids), d), np.float32)
            out[where] = values
        return out

    def read_pieces(
        self, site: str, rows: AskedRows = None, size: int = 65_536
    ) -> Iterator[NDArray[np.float32]]:
        """What `read` gives, in pieces of `size` rows (the last may be smaller), one
        after the other.
        """
        for ids in pieces(self, rows, size):
            yield self.read(site, ids)

    def read_unit(self, site: str, unit: int) -> NDArray[np.float32]:
        """All valid rows of a unit in slot order, float32 [n_rows, d]."""
        return self.read(
            site, np.arange(self.unit_rows[unit]) + unit * self.layout.capacity
        )

    def read_norms(self, site: str, rows: AskedRows = None) -> NDArray[np.float32]:
        """L2 norms of stored rows (see `read`), float32 [n], without decoding
        activations.
        """
        self.site(site)
        ids = ids_of(self, rows)
        out = np.empty(len(ids), np.float32)
        for unit, where in self._by_unit(ids):
            key = keys.chunk_key(keys.norm_key(site), unit)
            out[where] = self.plain(key, (self.layout.capacity,), np.float32)[
                ids[where] % self.layout.capacity
            ]
        return out

    def provenance(self, rows: AskedRows = None) -> Provenance:
        """(sequence, position, token) of rows (see `read`), the same for every site."""
        ids = ids_of(self, rows)
        pairs = np.empty((len(ids), 2), np.int64)
        tokens = np.empty(len(ids), np.int64)
        size = self.layout.unit_sequences
        for unit, where in self._by_unit(ids):
            here = self.pairs(unit)[ids[where] % self.layout.capacity]
            pairs[where] = here
            tokens[where] = self.block(unit)[here[:, 0] - unit * size, here[:, 1]]
        return Provenance(pairs[:, 0], pairs[:, 1], tokens)

    def tokens(self, sequences: ArrayLike) -> NDArray[np.int32]:
        """Token ids of sequences, int32 [n, context]; -1 is padding.

        Raises SpecError where the store was imported without tokens.
        """
        if not self.manifest.has_tokens:
            raise SpecError(
                f"{self.url}: this store was imported without tokens; import again with"
                " them (--tokens)"
            )
        ids = np.asarray(sequences, np.int64)
        end = self.manifest.n_units * self.layout.unit_sequences
        if len(ids) and (ids.min() < 0 or ids.max() >= end):
            raise IndexError(
                f"sequences {ids.min()}..{ids.max()}: the store's units hold"
                f" 0..{end - 1}"
            )
        out = np.empty((len(ids), self.layout.context), np.int32)
        units = ids // self.layout.unit_sequences
        for unit in np.unique(units):
            where = units == unit
            out[where] = self.block(int(unit))[ids[where] % self.layout.unit_sequences]
        if len(out) and (out < 0).all(axis=1).any():
            raise IndexError(
                f"sequence {ids[(out < 0).all(axis=1)][0]}: its unit ends before it"
            )
        return out

    @cached_property
    def statistics(self) -> UnitStats:
        """The merged statistics over training units, vectors and histograms included."""
        from actstore.format.statistics import UnitStats

        key = keys.merged_stats_key(self._newest)
        return UnitStats.from_bytes(
            self.manifest.sites, self.file(key), f"{self.url}/{key}"
        )

    def mean(self, site: str) -> NDArray[np.float64]:
        """Mean activation over training rows, float64 [d]."""
        return self.statistics.sites[self.site(site).name].moments()[1]

    def variance(self, site: str) -> NDArray[np.float64]:
        """Variance of each channel over training rows, float64 [d]."""
        return self.statistics.sites[self.site(site).name].moments()[2]

    def tokenizer(self, *, trust_remote_code: bool = False) -> Any:
        """The model's tokenizer as kept in the store (transformers), or None where none
        was kept.

        trust_remote_code: run code that is kept with it, if it needs any. Raises
        ModelError where it cannot be read.
        """
        from actstore.store.tokenizer_files import stored_tokenizer

        files = {
            key.rpartition("/")[2]: self.file(key) for key in self.tokenizer_keys()
        }
        return stored_tokenizer(
            files,
            self.manifest.spec.model.name,
            f"{self.url}/tokenizer",
            trust=trust_remote_code,
        )

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

        `fields` are those of a StreamSpec (`schemas/stream.py`) and override `spec`'s;
        `actstore.stream.stream.Stream` tells the rest. Raises SpecError for a field
        that does not exist or cannot be used.
        """
        from actstore.stream.stream import Stream
        from actstore.stream.stream_setup import spec_with

        made = spec_with(spec, fields)
        return Stream(
            self,
            made,
            device=device,
            threads=threads,
            rank=rank,
            world=world,
            on_corrupt=on_corrupt,
        )

    def _by_unit(self, ids: RowIds) -> Iterator[tuple[int, RowIds]]:
        units = unit_of(ids, self.layout)
        for unit in np.unique(units):
            yield int(unit), np.flatnonzero(units == unit)

    def _widen(
        self, site: str, unit: int, slots: RowIds, values: NDArray[Any]
    ) -> NDArray[np.float32]:
        if values.dtype != np.int8:
            return to_float32(values)
        scale, step = self.int8_parts(site, unit)
        return decode_int8(Int8Rows(values, scale[slots], step))
