"""Checks the objects that no digest covers.

What is under a digest says what they hold: each is made anew and compared.

`zarr.json` of groups and arrays follow from the manifest, a block record from its
unit's record and tokens. JSON is compared as values, not as bytes: `docs/FORMAT.md`
fixes no white space. What a block record alone knows (the corpus' cursor, the documents
left out) can only be checked for its form.
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
from actstore.format import object_keys, zarr_metadata
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
    """The result of checking one object.

    Attributes:
        n_bytes: Bytes that were looked at.
        problem: A line about what is wrong; None if nothing is.
        repair: The bytes that the object must hold, if they are known.
    """

    n_bytes: int
    problem: str | None = None
    repair: bytes | None = None


class CheckedObject(NamedTuple):
    """An object, and how it is checked.

    Attributes:
        key: The key of the object.
        check: Reads the object and says what it found.
    """

    key: str
    check: Callable[[], Finding]


def derived_objects(
    store: Store, records: dict[int, UnitRecord]
) -> list[CheckedObject]:
    """Return how to check the objects that no digest covers.

    These are every `zarr.json` outside the columns, and the block records of the units
    in `records`.

    Args:
        store: An open store.
        records: By unit, of the generation that wrote the unit's tokens.
    """
    manifest = store.manifest
    arrays = zarr_metadata.arrays(manifest)
    # Besides what the finished store has: groups before they list anything, and what an
    # extension makes of them that is not finished or has just been.
    before_listing = zarr_metadata.files(zarr_metadata.groups(manifest, arrays, None))
    others = [before_listing, *_extended_metadata(store)]
    objects = []
    for key, data in zarr_metadata.metadata_files(manifest).items():
        allowed = [data, *(files[key] for files in others if key in files)]
        check = partial(_check_metadata, store, key, allowed)
        objects.append(CheckedObject(key, check))
    # Only the last block of a generation that reads the corpus may say that it ends.
    last_units = set()
    for i, generation in enumerate(manifest.generations):
        brings_units = i == 0 or generation.first_unit > 0
        if brings_units:
            last_units.add(generation.first_unit + generation.n_units - 1)
    for unit, record in records.items():
        check = partial(_check_block, store, record, last=unit in last_units)
        objects.append(CheckedObject(object_keys.block_key(unit), check))
    return objects


def _extended_metadata(store: Store) -> list[dict[str, bytes]]:
    """Return what extensions that this manifest does not know make of `zarr.json`.

    Arrays are as an extension begins, groups as it ends.
    """
    manifest = store.manifest
    versions = []
    arrays = zarr_metadata.arrays(manifest)
    listed = zarr_metadata.all_columns(manifest)
    n_units = manifest.n_units
    n_sites = len(manifest.sites)
    for generation in count(len(manifest.generations)):
        try:
            plan = read_plan(store.storage, generation)
            if plan.adds_sites:
                units: range | None = range(n_units)
            else:
                units = wanted_units(store.storage, plan, manifest)
        except StoreError:  # there is no such extension
            break
        arrays |= zarr_metadata.arrays(plan)
        versions.append(zarr_metadata.files(zarr_metadata.arrays(plan)))
        if units is None:  # where its corpus ends is not known yet
            break
        n_units = units.stop
        if plan.adds_sites:
            n_sites += len(plan.sites)
        listed |= zarr_metadata.columns(plan, generation, n_units, n_sites)
        versions.append(zarr_metadata.files(zarr_metadata.groups(plan, arrays, listed)))
    return versions


def _check_metadata(store: Store, key: str, allowed: list[bytes]) -> Finding:
    """Compare a `zarr.json` with what it must be.

    That is the first of `allowed`, or any other of them.
    """
    where = f"{store.url}/{key}"
    wanted = allowed[0]
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
    # Read while an extension writes, any of these states is a good one.
    if any(not _differences(json.loads(other), values) for other in allowed):
        return Finding(len(data))
    differences = _differences(json.loads(wanted), values)
    problem = f"corrupt  {where}: {', '.join(differences)}; {advice}"
    return Finding(len(data), problem, wanted)


def _differences(wanted: dict[str, Any], got: Any) -> list[str]:
    """Return the keys in which two JSON objects differ, with both values.

    1, 1.0 and true are three values.
    """
    if not isinstance(got, dict):
        return [f"wanted an object, got {type(got).__name__}"]
    lines = []
    for key in sorted({*wanted, *got}):
        wanted_text = _text(wanted, key)
        got_text = _text(got, key)
        if wanted_text != got_text:
            lines.append(f"{key}: wanted {wanted_text}, got {got_text}")
    return lines


def _text(values: dict[str, Any], key: str) -> str:
    """Return a value as JSON, the same for the same values."""
    return json.dumps(values[key], sort_keys=True) if key in values else "none"


def _check_block(store: Store, unit: UnitRecord, *, last: bool) -> Finding:
    """Compare a block record with its unit's record and tokens.

    The tokens are compared where they are what was recorded. last: whether the corpus
    ends with the block.
    """
    key = object_keys.block_key(unit.unit)
    where = f"{store.url}/{key}"
    try:
        data = store.storage.read(key, SMALL_JSON)
        block = parsed_record(BlockRecord, data, where)
    except CorruptError as error:
        return Finding(0, f"corrupt  {error}; {_COPY}")
    except (ObjectError, StorageError) as error:
        return Finding(0, f"missing  {error}; {_COPY}")
    wanted = {
        "unit": unit.unit,
        "n_sequences": unit.n_sequences,
        "tokens": unit.objects[object_keys.chunk_key("tokens", unit.unit, 0)],
        "last": last,
    }
    n_tokens, problem = _count_tokens(store, unit)
    if n_tokens is not None:
        wanted["n_tokens"] = n_tokens
    differing = []
    for name, value in wanted.items():
        got = getattr(block, name)
        if got != value:
            differing.append(f"{name}: wanted {value}, got {got}")
    if not _is_cursor(block.cursor, last=last):
        differing.append(f"cursor: {block.cursor} is no place in a corpus")
    if differing:
        problem = f"corrupt  {where}: {', '.join(differing)}; {_COPY}"
    return Finding(len(data), problem)


def _count_tokens(store: Store, unit: UnitRecord) -> tuple[int | None, str | None]:
    """Return how many tokens a unit has, and a line about what is wrong.

    The number is None where it is not known. The line says where tokens or rows cannot
    be, though they are those recorded.
    """
    tokens = _as_recorded(store, unit, object_keys.chunk_key("tokens", unit.unit, 0))
    rows = _as_recorded(store, unit, object_keys.chunk_key("rows", unit.unit, 0))
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
    """Return an object of a unit; None where it is not the one recorded.

    The object's own check tells of that.
    """
    record = unit.objects[key]
    try:
        data = store.storage.read(key, record.bytes)
    except (ObjectError, StorageError):
        return None
    return data if blake3(data).hexdigest() == record.digest else None


def _is_cursor(cursor: dict[str, Any], *, last: bool) -> bool:
    """Return whether a cursor can be a place in a corpus.

    It has named numbers, each counted from 0; or says that it is the corpus' end, which
    only a last block can.
    """
    if cursor == {"end": True}:
        return last
    if not cursor:  # it says nothing of where to go on
        return False
    for value in cursor.values():
        # True is an int, and not a number that counts
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return False
    return True
