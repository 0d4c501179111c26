"""Objects that no digest covers, because what is under one says what they hold: each is
made anew and compared.

`zarr.json` of groups and arrays follow from the manifest, a block record from its
unit's record and tokens. JSON is compared as values, not as bytes: FORMAT.md fixes no
white space. What a block record alone knows (the corpus' cursor, the documents left
out) can only be looked at for its form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from actstore.errors import CorruptError, ObjectError, StorageError, StoreError
from actstore.format import keys, zarr_metadata
from actstore.format.json_records import parsed_json, parsed_record
from actstore.format.manifest import read_plan
from actstore.format.object_sizes import RECORD_JSON, SMALL_JSON
from actstore.store.committed_units import wanted_units
from actstore.store.store import Store
from schemas.manifest import BlockRecord, UnitRecord

_COPY = (
    "it cannot be recomputed, for it alone says where in the corpus the block ends:"
    " copy it from another copy of the store. Without it the store is read as before,"
    " but `actstore extend` refuses it"
)


class Finding(NamedTuple):
    """n_bytes: looked at; problem: a line, or None; repair: what the object must hold,
    where that is known.
    """

    n_bytes: int
    problem: str | None = None
    repair: bytes | None = None


class Derived(NamedTuple):
    """An object and how to look at it."""

    key: str
    check: Callable[[], Finding]


def derived_objects(store: Store, records: dict[int, UnitRecord]) -> list[Derived]:
    """Every `zarr.json` outside the columns, and the block record of every unit in
    `records`.

    records: by unit, of the generation that wrote the unit's tokens.
    """
    found = []
    others = [
        zarr_metadata.files(
            zarr_metadata.groups(
                store.manifest, zarr_metadata.arrays(store.manifest), None
            )
        ),
        *_later(store),
    ]
    for key, data in zarr_metadata.metadata_files(store.manifest).items():
        allowed = [data, *(files[key] for files in others if key in files)]
        found.append(Derived(key, partial(_metadata, store, key, allowed)))
    ends = {
        g.first_unit + g.n_units - 1
        for i, g in enumerate(store.manifest.generations)
        if g.first_unit or not i
    }
    for unit, record in records.items():
        found.append(
            Derived(
                keys.block_key(unit), partial(_block, store, record, last=unit in ends)
            )
        )
    return found


def _later(store: Store) -> list[dict[str, bytes]]:
    """What extensions that this manifest does not know yet make of arrays, at first,
    and of groups, at the end.
    """
    manifest, found = store.manifest, []
    arrays, listed = zarr_metadata.arrays(manifest), zarr_metadata.all_columns(manifest)
    n_units, n_sites = manifest.n_units, len(manifest.sites)
    for generation in count(len(manifest.generations)):
        try:
            plan = read_plan(store.storage, generation)
            wanted = (
                range(n_units)
                if plan.adds_sites
                else wanted_units(store.storage, plan, manifest)
            )
        except StoreError:
            break
        arrays |= zarr_metadata.arrays(plan)
        found.append(zarr_metadata.files(zarr_metadata.arrays(plan)))
        if wanted is None:
            break
        n_units, n_sites = wanted.stop, n_sites + len(plan.sites) * plan.adds_sites
        listed |= zarr_metadata.columns(plan, generation, n_units, n_sites)
        found.append(zarr_metadata.files(zarr_metadata.groups(plan, arrays, listed)))
    return found


def _metadata(store: Store, key: str, allowed: list[bytes]) -> Finding:
    where, wanted = f"{store.url}/{key}", allowed[0]
    advice = (
        f"it follows from the manifest: `actstore verify --repair {store.url}` writes"
        " it anew"
    )
    try:
        data = store.storage.read(key, RECORD_JSON)  # the root lists every array
        values = parsed_json(data, where)
    except CorruptError as error:
        return Finding(0, f"corrupt  {error}; {advice}", wanted)
    except (ObjectError, StorageError) as error:
        return Finding(0, f"missing  {error}; {advice}", wanted)
    differing = _differences(json.loads(wanted), values)
    if differing and all(_differences(json.loads(one), values) for one in allowed[1:]):
        return Finding(
            len(data), f"corrupt  {where}: {', '.join(differing)}; {advice}", wanted
        )
    return Finding(len(data))


def _differences(wanted: dict[str, Any], found: Any) -> list[str]:
    """Keys in which two JSON objects differ, with both values; 1, 1.0 and true are
    three values.
    """
    if not isinstance(found, dict):
        return [f"wanted an object, got {type(found).__name__}"]
    text = {
        key: (_text(wanted, key), _text(found, key))
        for key in sorted({*wanted, *found})
    }
    return [f"{key}: wanted {a}, got {b}" for key, (a, b) in text.items() if a != b]


def _text(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True) if key in values else "none"


def _block(store: Store, unit: UnitRecord, *, last: bool) -> Finding:
    """A block record against its unit's record and the tokens themselves (where these
    are what was recorded).
    """
    key = keys.block_key(unit.unit)
    where = f"{store.url}/{key}"
    try:
        data = store.storage.read(key, SMALL_JSON)
        found = parsed_record(BlockRecord, data, where)
    except CorruptError as error:
        return Finding(0, f"corrupt  {error}; {_COPY}")
    except (ObjectError, StorageError) as error:
        return Finding(0, f"missing  {error}; {_COPY}")
    tokens = unit.objects[keys.chunk_key("tokens", unit.unit, 0)]
    wanted = {
        "unit": unit.unit,
        "n_sequences": unit.n_sequences,
        "tokens": tokens,
        "last": last,
    }
    n_tokens, problem = _tokens(store, unit)
    wanted |= {} if n_tokens is None else {"n_tokens": n_tokens}
    differing = [
        f"{k}: wanted {v}, got {getattr(found, k)}"
        for k, v in wanted.items()
        if getattr(found, k) != v
    ]
    differing += (
        []
        if _is_cursor(found.cursor, last=last)
        else [f"cursor: {found.cursor} is no place in a corpus"]
    )
    if differing:
        return Finding(len(data), f"corrupt  {where}: {', '.join(differing)}; {_COPY}")
    return Finding(len(data), problem)


def _tokens(store: Store, unit: UnitRecord) -> tuple[int | None, str | None]:
    """How many tokens a unit has, None where that is not known; and a line where its
    tokens or its rows cannot be, though they are those recorded.
    """
    tokens, rows = (
        _as_recorded(store, unit, keys.chunk_key(name, unit.unit, 0))
        for name in ("tokens", "rows")
    )
    n_tokens = None
    try:
        if tokens is not None:
            n_tokens = int(np.count_nonzero(store.block(unit.unit, tokens) >= 0))
        if rows is not None:
            store.pairs(unit.unit, rows)
    except CorruptError as error:
        return n_tokens, f"corrupt  {error}"
    return n_tokens, None


def _as_recorded(store: Store, unit: UnitRecord, key: str) -> bytes | None:
    """An object of a unit; None where it is not the one recorded, which is told of that
    object.
    """
    record = unit.objects[key]
    try:
        data = store.storage.read(key, record.bytes)
    except (ObjectError, StorageError):
        return None
    return data if blake3(data).hexdigest() == record.digest else None


def _is_cursor(cursor: dict[str, Any], *, last: bool) -> bool:
    """Named places, each counted from 0; or the corpus' end, which only a last block
    can have.
    """
    if cursor == {"end": True}:
        return last
    return bool(cursor) and all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 0
        for v in cursor.values()
    )
