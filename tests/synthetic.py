"""Stores of any number of units that cost no more than one: every shard is the same
file under another name.
"""

from __future__ import annotations

import builtins
import os
import re
import time
from collections import Counter
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
from actstore.format.storage import Buffers, Part, Storage
from actstore.harvesting.store_writer import StoreWriter
from actstore.store.store import Store
from schemas.stream import StreamSpec
from tests.support import low_rank, make_plan, make_store, unit_rows

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


class CommittedUnits(Storage):
    """An unfinished store of any number of units, of which one is real: each record is
    made when it is read, as if every unit held the first one's bytes.

    What is written is kept in `written`. `wait_s` stands for a network.
    """

    def __init__(self, folder: Path, n_units: int, sites: dict[str, int]) -> None:
        super().__init__(str(folder))
        self.plan = make_plan(sites, n_units=n_units, unit_sequences=1, context=16)
        one = self.plan.model_copy(
            update={"layout": self.plan.layout.model_copy(update={"n_units": 1})}
        )
        writer = StoreWriter(Storage(str(folder)), one)
        tokens = np.ones((1, 16), np.int32)
        block = writer.commit_block(0, tokens, {"document": 1}, last=False)
        writer.commit_unit(unit_rows(one, 0, tokens, low_rank(one)), block)
        writer.close()
        plain = Storage(str(folder))
        self._unit = plain.read(object_keys.unit_key(0)).decode()
        self._block = plain.read(object_keys.block_key(0)).decode()
        self._stats = plain.read(object_keys.unit_stats_key(0))
        self.local = None  # so that all bytes come through the methods below
        self.n_units = n_units
        self.wait_s = 0.0
        self.requests: Counter[str] = Counter()
        self.written: dict[str, bytes] = {
            object_keys.plan_key(): self.plan.to_json().encode()
        }

    def read(self, key: str, limit: int | None = None) -> bytes:
        self._count(key)
        if key in self.written:
            return self.written[key]
        folder, _, name = key.partition("/")
        unit = int(name.partition(".")[0])
        if name.endswith(".stats"):
            return self._stats
        if folder == "units":
            text = re.sub(r"/c/0(?=[/\"])", f"/c/{unit}", self._unit)
            text = text.replace("units/00000.stats", object_keys.unit_stats_key(unit))
        else:
            text = self._block
            if unit == self.n_units - 1:
                text = re.sub(r'"last": ?false', '"last": true', text)
        return re.sub(r'"unit": ?0', f'"unit": {unit}', text, count=1).encode()

    def exists(self, key: str) -> bool:
        self._count(key)
        if key.startswith(("units/", "blocks/")):
            return int(key.partition("/")[2].partition(".")[0]) < self.n_units
        return key in self.written

    def list(self, prefix: str = "") -> builtins.list[str]:
        key_of = {"units": object_keys.unit_key, "blocks": object_keys.block_key}
        if prefix in key_of:
            self.requests[f"LIST {prefix}"] += -(-self.n_units // 1000)
            return [key_of[prefix](unit) for unit in range(self.n_units)]
        return [key for key in self.written if key.startswith(prefix)]

    def put(self, key: str, data: Buffers) -> None:
        self._count(key)
        self.written[key] = bytes(data) if isinstance(data, bytes) else b"".join(data)

    def create(self, key: str, data: Buffers) -> bool:
        if key in self.written:
            return False
        self.put(key, data)
        return True

    def delete(self, key: str) -> None:
        self.written.pop(key, None)

    def _count(self, key: str) -> None:
        self.requests[key.partition("/")[0]] += 1
        if self.wait_s:
            time.sleep(self.wait_s)
