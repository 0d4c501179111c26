"""Stores of any number of units that cost no more than one: every shard is the same
file under another name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import actstore
from actstore.format import object_keys
from actstore.format.layout import held_out
from actstore.format.object_records import put
from actstore.format.object_sizes import column_bytes
from actstore.format.shard import encode_plain
from actstore.format.statistics import UnitStats
from actstore.format.storage import Part, Storage
from actstore.store.store import Store
from schemas.stream import StreamSpec
from tests.support import make_store

SITE = "site.{}"


def linked_store(
    folder: Path,
    *,
    n_units: int,
    unit_rows: int,
    chunk_rows: int,
    n_sites: int = 1,
    d: int = 64,
    codec: str = "raw",
    links: Iterable[int] | None = None,
) -> Store:
    """A finished bfloat16 store whose units and sites all hold the same `unit_rows`
    rows.

    One unit of one site goes through the real writer; the manifest and the rows column
    then say that there are more. links: the units whose shards exist (hard links in the
    first site's folder; other sites' folders are symbolic links to it); None: all of
    them. A unit is one sequence, so that windows are as large as `memory` allows.
    """
    pool = np.random.default_rng(0).standard_normal((unit_rows, d)).astype(np.float32)
    base = make_store(
        folder,
        {SITE.format(0): d},
        lambda _site, _sequence, position: pool[position],
        n_units=1,
        unit_sequences=1,
        context=unit_rows,
        codec=codec,
        chunk_rows=chunk_rows,
    )
    _link(folder, range(n_units) if links is None else links)
    for site in range(1, n_sites):
        (folder / object_keys.acts_key(SITE.format(site))).symlink_to(SITE.format(0))
    _claim(base, n_units, n_sites)
    return actstore.open(folder)


class OneShard(Storage):
    """A linked store's objects, where every shard that is asked for is the first one;
    `units` are those asked for.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.url)
        self.local = None  # so that all bytes come through the methods below
        self.units: set[int] = set()
        self._plain = store.storage

    def read(self, key: str, limit: int | None = None) -> bytes:
        return self._plain.read(key, limit)

    def size(self, key: str) -> int:
        return self._plain.size(key)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Part]:
        if not key.startswith("acts/"):
            return self._plain.read_ranges(key, ranges)
        self.units.add(int(key.rsplit("/", 2)[1]))
        return self._plain.read_ranges(
            object_keys.chunk_key(object_keys.acts_key(SITE.format(0)), 0, 0), ranges
        )


def link_first_windows(store: Store, spec: StreamSpec) -> list[int]:
    """Make the shards that a stream's first two windows need; returns their units.
    Found by streaming them.
    """
    one = OneShard(store)
    with Store(one, store.manifest).stream(spec) as stream:
        window_rows = stream.window_chunks * store.layout.chunk_rows * len(store.sites)
        delivered = 0
        while delivered <= window_rows:
            delivered += len(next(stream).row)
    _link(Path(store.url), one.units)
    return sorted(one.units)


def _link(folder: Path, units: Iterable[int]) -> None:
    first = folder / object_keys.acts_key(SITE.format(0)) / "c"
    for unit in units:
        if unit:
            (first / str(unit)).mkdir()
            os.link(first / "0/0", first / f"{unit}/0")


def _claim(base: Store, n_units: int, n_sites: int) -> None:
    """Rewrite columns, statistics and the manifest for more units and sites than there
    are.
    """
    old, rows = base.manifest, int(base.unit_rows[0])
    column = encode_plain(np.full(n_units, rows, "<i4"), (n_units,), 0)
    sites = tuple(
        old.sites[0].model_copy(update={"name": SITE.format(i)}) for i in range(n_sites)
    )
    counts = {"n_units": n_units, "n_sequences": n_units, "n_rows": n_units * rows}
    n_held_out = sum(held_out(unit) for unit in range(n_units))
    n_train = n_units - n_held_out
    stats = UnitStats(sites)
    for one in stats.sites.values():
        for i, (mine, its) in enumerate(
            zip(
                one.arrays(),
                base.statistics.sites[SITE.format(0)].arrays(),
                strict=True,
            )
        ):
            # the maximum and the mean do not add up
            mine[:] = its if i in {4, 5} else its * n_train
    first, *others = column_bytes(0, n_units, n_sites).items()
    files = {
        key: encode_plain(np.zeros(size - 4, np.uint8), (size - 4,), 0)
        for key, size in others
    }
    files |= {first[0]: column, "norms.stats": stats.to_bytes()}
    records = {key: put(base.storage, key, data) for key, data in files.items()}
    made = old.model_copy(
        update={
            **counts,
            "sites": sites,
            "norms": stats.norms(),
            "files": old.files | records,
            "layout": old.layout.model_copy(
                update={"n_units": n_units, "n_sequences": n_units}
            ),
            "generations": (
                old.generations[0].model_copy(update={**counts, "sites": sites}),
            ),
            "n_train_rows": n_train * rows,
        }
    )
    base.storage.put(object_keys.MANIFEST, made.to_json().encode())
