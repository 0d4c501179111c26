"""A finished store, open for reading.

It gives the manifest, norms, rows by id, their provenance, and streams.

Opening reads the manifest and the column of rows only, whatever the number of units.
This module loads neither torch nor zarr; `stream` and `tokenizer` load what they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import SpecError
from actstore.format import object_keys
from actstore.format.content_id import content_id
from actstore.format.layout import held_out, unit_of
from actstore.format.storage import Storage
from actstore.format.stored_dtypes import Int8Rows, decode_int8, to_float32
from actstore.store.chunk_reader import ChunkReader
from actstore.store.row_ids import (
    RowIds,
    RowSelection,
    selected_ids,
    selected_pieces,
)
from actstore.store.shard_bytes import ShardBytes
from actstore.store.stored_objects import StoredObjects
from actstore.store.streamed_store import StreamedStore
from schemas.manifest import NormStats, StoreManifest

if TYPE_CHECKING:
    from actstore.format.statistics import UnitStats
    from actstore.stream.stream import Stream
    from schemas.stream import StreamSpec


SPLIT = arguments.choice("train", "held_out")


class Provenance(NamedTuple):
    """The origin of rows: sequence, position and token of each.

    Attributes:
        sequence: Number of the row's sequence in the whole store, int64 [n]; in a store
            that was imported without contexts, the row's number in its source.
        position: The token's position in its sequence, int64 [n].
        token: The token's id, int64 [n]; -1 in a store imported without tokens.
    """

    sequence: RowIds
    position: RowIds
    token: RowIds


class Store(StoredObjects):
    """A finished store.

    Row id = unit * capacity + slot; the same id is the same token at every site.

    Attributes:
        norms: The figures of each site's L2 norms over training rows, by site.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: StoreManifest,
        shards: ShardBytes | None = None,
    ) -> None:
        super().__init__(storage, manifest, shards)
        self.norms: dict[str, NormStats] = {
            norms.site: norms for norms in manifest.norms
        }

    def __repr__(self) -> str:
        manifest = self.manifest
        widths = sorted({site.d for site in manifest.sites})
        sites = f"{len(manifest.sites)} sites of d {', '.join(map(str, widths))}"
        return (
            f"Store({self.url!r}: {manifest.spec.model.name}, {sites},"
            f" {manifest.n_rows:,} rows each, {manifest.spec.dtype})"
        )

    def _repr_html_(self) -> str:
        from actstore.console.notebook import table
        from actstore.store.description import describe

        _, *lines = describe(self)  # the first one is the title
        return table(f"Store {self.url}", lines)

    @property
    def objects(self) -> StoredObjects:
        """The objects that the store's rows are read from: the store is them itself."""
        return self

    @checked(split=optional(SPLIT))
    def units(self, split: str | None = None) -> list[int]:
        """Return the units of a split ("train", "held_out"), or all of them."""
        every_unit = range(self.manifest.n_units)
        if split is None:
            return list(every_unit)
        wanted = split == "held_out"
        return [unit for unit in every_unit if held_out(unit) == wanted]

    @checked(split=optional(SPLIT))
    def rows(self, split: str | None = None) -> RowIds:
        """Return the ids of all valid rows in store order, int64 [n].

        `split` is as for `units`.
        """
        ids_by_unit = []
        for unit in self.units(split):
            first_id = unit * self.layout.capacity
            ids_by_unit.append(
                np.arange(self.unit_rows[unit], dtype=np.int64) + first_id
            )
        if not ids_by_unit:  # a small store has no unit that is held out
            return np.zeros(0, np.int64)
        return np.concatenate(ids_by_unit)

    def before(self, n_generations: int) -> Store:
        """Return the store as it was when it had its first generations only.

        A stream that began then goes on with that.
        """
        from actstore.format.statistics import UnitStats

        kept = self.manifest.generations[:n_generations]
        n_units = max(g.first_unit + g.n_units for g in kept)
        # A generation that begins at unit 0 brings sites; one that begins later brings
        # units. The first of all brings both.
        bringing_sites = [g for g in kept if g.first_unit == 0]
        sites = tuple(site for g in bringing_sites for site in g.sites)
        bringing_units = [g for g in kept if g.first_unit > 0 or g is kept[0]]
        key = object_keys.merged_stats_key(n_generations - 1)
        stats = UnitStats.from_bytes(sites, self.file(key), f"{self.url}/{key}")
        rows = self.unit_rows[:n_units].astype(np.int64)
        training = [unit for unit in range(n_units) if not held_out(unit)]
        update = {
            "content_id": content_id(kept),
            "sites": sites,
            "generations": kept,
            "n_units": n_units,
            "n_sequences": sum(g.n_sequences for g in bringing_units),
            "n_rows": int(rows.sum()),
            "n_train_rows": int(rows[training].sum()),
            "norms": stats.norms(),
        }
        manifest = self.manifest.model_copy(update=update)
        return Store(self.storage, manifest, self.shards)

    def read(
        self,
        site: str,
        rows: RowSelection = None,
    ) -> NDArray[np.float32]:
        """Return activations of a site, float32 [n, d].

        They take n * d * 4 bytes; `read_pieces` is for more than fits into memory.

        Args:
            site: Name of the site.
            rows: Ids, read in their order; or a slice of all valid rows in store order,
                such as `slice(0, 1000)`; or None for all rows.

        Raises:
            SiteError: No such site.
            IndexError: Ids that do not exist.
            CorruptError: Stored bytes are not what they must be.
        """
        ids = selected_ids(self, rows)
        d = self.site(site).d
        # Its buffers are for this call only; the shard indexes stay with the store.
        reader = ChunkReader(self, (site,))
        out = np.empty((0, d), np.float32)
        for unit, of_unit in self._by_unit(ids):
            slots = ids[of_unit] - unit * self.layout.capacity
            stored = reader.read_slots(0, unit, slots)
            values = self._as_float32(site, unit, slots, stored)
            # Memory for all rows is taken once the first ones have shown that they are
            # as wide as the manifest says.
            if not len(out):
                out = np.empty((len(ids), d), np.float32)
            out[of_unit] = values
        return out

    @checked(size=arguments.count)
    def read_pieces(
        self, site: str, rows: RowSelection = None, size: int = 65_536
    ) -> Iterator[NDArray[np.float32]]:
        """Yield what `read` returns, in pieces of `size` rows, float32 [size, d].

        The last piece may be smaller.
        """
        for ids in selected_pieces(self, rows, size):
            yield self.read(site, ids)

    def read_unit(self, site: str, unit: int) -> NDArray[np.float32]:
        """Return all valid rows of a unit, float32 [n_rows, d].

        They are in the order of their slots.
        """
        slots = np.arange(self.unit_rows[unit])
        return self.read(site, slots + unit * self.layout.capacity)

    def read_norms(
        self,
        site: str,
        rows: RowSelection = None,
    ) -> NDArray[np.float32]:
        """Return L2 norms of stored rows, float32 [n], without decoding activations.

        `rows` are as for `read`.
        """
        self.site(site)
        ids = selected_ids(self, rows)
        capacity = self.layout.capacity
        out = np.empty(len(ids), np.float32)
        for unit, of_unit in self._by_unit(ids):
            key = object_keys.chunk_key(object_keys.norm_key(site), unit)
            norms = self.plain(key, unit, (capacity,), np.float32)
            out[of_unit] = norms[ids[of_unit] % capacity]
        return out

    def provenance(self, rows: RowSelection = None) -> Provenance:
        """Return sequence, position and token of rows, the same for every site.

        `rows` are as for `read`.
        """
        ids = selected_ids(self, rows)
        pairs = np.empty((len(ids), 2), np.int64)
        tokens = np.empty(len(ids), np.int64)
        unit_sequences = self.layout.unit_sequences
        for unit, of_unit in self._by_unit(ids):
            slots = ids[of_unit] % self.layout.capacity  # id = unit * capacity + slot
            unit_pairs = self.pairs(unit)[slots]
            pairs[of_unit] = unit_pairs
            # Sequences are numbered over the whole store, but a token block has those
            # of its unit only.
            sequence_in_unit = unit_pairs[:, 0] - unit * unit_sequences
            position = unit_pairs[:, 1]
            tokens[of_unit] = self.block(unit)[sequence_in_unit, position]
        return Provenance(pairs[:, 0], pairs[:, 1], tokens)

    def tokens(self, sequences: ArrayLike) -> NDArray[np.int32]:
        """Return the token ids of sequences, int32 [n, context]; -1 is padding.

        Args:
            sequences: Numbers of sequences, integers [n].

        Raises:
            SpecError: The store was imported without tokens.
            IndexError: There is no such sequence.
        """
        if not self.manifest.has_tokens:
            raise SpecError(
                f"{self.url}: this store was imported without tokens; import again with"
                " them (--tokens)"
            )
        numbers = np.asarray(sequences, np.int64)
        unit_sequences = self.layout.unit_sequences
        end = self.manifest.n_units * unit_sequences
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= end):
            raise IndexError(
                f"sequences {numbers.min()}..{numbers.max()}: the store's units hold"
                f" 0..{end - 1}"
            )
        out = np.empty((len(numbers), self.layout.context), np.int32)
        units = numbers // unit_sequences
        # Unit by unit, so that each token block is read once.
        for unit in np.unique(units):
            of_unit = units == unit
            in_unit = numbers[of_unit] % unit_sequences
            out[of_unit] = self.block(int(unit))[in_unit]
        # The last unit may have fewer sequences than a unit can hold.
        absent = (out < 0).all(axis=1)
        if absent.any():
            raise IndexError(f"sequence {numbers[absent][0]}: its unit ends before it")
        return out

    @cached_property
    def statistics(self) -> UnitStats:
        """Statistics merged over training units.

        They have each channel's sums, and the histograms of norms.
        """
        from actstore.format.statistics import UnitStats

        key = object_keys.merged_stats_key(self._newest)
        return UnitStats.from_bytes(
            self.manifest.sites, self.file(key), f"{self.url}/{key}"
        )

    def mean(self, site: str) -> NDArray[np.float64]:
        """Return a site's mean activation over training rows, float64 [d]."""
        name = self.site(site).name
        return self.statistics.sites[name].moments().mean

    def variance(self, site: str) -> NDArray[np.float64]:
        """Return each channel's variance over training rows, float64 [d]."""
        name = self.site(site).name
        return self.statistics.sites[name].moments().variance

    @checked(trust_remote_code=arguments.flag)
    def tokenizer(self, *, trust_remote_code: bool = False) -> Any:
        """Return the model's tokenizer as the store keeps it, one of transformers'.

        None where none was kept.

        Args:
            trust_remote_code: Run code that is kept with it, if it needs any.

        Raises:
            ModelError: It cannot be read.
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

    @checked(
        device=arguments.device,
        threads=optional(arguments.count),
        rank=arguments.count_from_0,
        world=arguments.count,
        on_corrupt=arguments.choice("error", "skip"),
    )
    def stream(
        self: StreamedStore,
        spec: StreamSpec | Mapping[str, Any] | None = None,
        *,
        device: Any = "cpu",
        threads: int | None = None,
        rank: int = 0,
        world: int = 1,
        on_corrupt: Literal["error", "skip"] = "error",
        **fields: Any,
    ) -> Stream:
        """Return a stream of shuffled batches of training rows.

        Args:
            spec: What the stream gives, a StreamSpec or a dict of its fields; by
                default what `StreamSpec()` says.
            fields: Fields of a StreamSpec (`schemas/stream.py`), which override
                `spec`'s. The other arguments are those of
                `actstore.stream.stream.Stream`.

        Raises:
            SpecError: A field that does not exist or cannot be used.

        Examples:
            `store.stream(batch=512, rescale="log")`
        """
        from actstore.stream.stream import Stream
        from actstore.stream.stream_spec import spec_with

        return Stream(
            self,
            spec_with(spec, fields),
            device=device,
            threads=threads,
            rank=rank,
            world=world,
            on_corrupt=on_corrupt,
        )

    def _by_unit(self, ids: RowIds) -> Iterator[tuple[int, RowIds]]:
        """Yield each unit that has some of the rows.

        With it come the positions of these rows in `ids`.
        """
        units = unit_of(ids, self.layout)
        # Ids may come in any order, but each unit's objects are read once.
        for unit in np.unique(units):
            yield int(unit), np.flatnonzero(units == unit)

    def _as_float32(
        self, site: str, unit: int, slots: RowIds, stored: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Return rows of a unit, [n, d] as they are stored, in float32."""
        if stored.dtype != np.int8:
            return to_float32(stored)
        scale, step = self.int8_parts(site, unit)
        return decode_int8(Int8Rows(stored, scale[slots], step))
