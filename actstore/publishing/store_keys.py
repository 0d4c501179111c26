"""Tells which objects belong to a store, by its manifest or its plans.

What lies in a store's folder and is none of them is somebody else's, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from actstore.errors import CorruptError, ObjectError
from actstore.format import object_keys, object_sizes, zarr_metadata
from actstore.format.json_records import parsed_json
from actstore.format.manifest import read_manifest, read_plan
from actstore.format.manifest_checks import is_tokenizer_file
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.store import true_features
from schemas.harvest import Plan
from schemas.manifest import StoreManifest

REMOVAL = "removing.json"
"""Says that the store in this folder is being removed.

It is written before the first object goes, and goes last.
"""
# In the order in which they are removed. A manifest makes a store whole and a unit's
# record makes its objects count; so whatever is left at any instant is an unfinished
# harvest, and never a store with holes.
_STEPS = (
    re.compile(r"manifest\.json"),
    re.compile(r"units(-\d+)?/\d{5,10}\.json"),
    re.compile(r"(?!plan(-\d+)?\.json|removing\.json).*"),
    re.compile(r"plan-\d+\.json"),
    re.compile(r"plan\.json"),
)
_UNIT = re.compile(r"(units(?:-\d+)?|blocks|claims)/(\d{5,10})\.(json|stats)")
_CHUNK = re.compile(r"(.+)/c/(\d{1,12})((?:/\d{1,12})*)")


class StoreKeys:
    """The keys that a store's objects can have.

    Attributes:
        n_units: Units of the store, as planned.
    """

    def __init__(
        self, manifest: StoreManifest | None, plans: Iterable[Plan] = ()
    ) -> None:
        """Take the keys of a manifest, and of plans of generations that it lacks."""
        self.n_units = 0
        self._files = {
            object_keys.MANIFEST,
            object_keys.README,
            object_keys.NORMS_FIGURE,
            object_keys.CROISSANT,
            object_keys.COPY,
            REMOVAL,
            true_features.RECORD,
            true_features.TENSORS,
        }
        self._arrays: set[str] = {"tokens", "rows"}
        if manifest is not None:
            self.n_units = manifest.n_units
            self._files |= set(manifest.files)
            self._files |= set(zarr_metadata.metadata_files(manifest))
            self._arrays |= set(zarr_metadata.arrays(manifest))
            for i in range(len(manifest.generations)):
                self._add_generation(i)
        for plan in plans:
            self.n_units = max(self.n_units, plan.layout.n_units)
            self._files |= set(zarr_metadata.metadata_files(plan))
            self._arrays |= set(zarr_metadata.arrays(plan))
            self._add_generation(plan.generation)

    def _add_generation(self, generation: int) -> None:
        self._files.add(object_keys.plan_key(generation))
        self._files.add(object_keys.merged_stats_key(generation))
        self._files.update(object_sizes.column_metadata(generation))
        for name in object_sizes.COLUMNS:
            self._files.add(object_sizes.column_key(generation, name))

    def __contains__(self, key: str) -> bool:
        if key in self._files or is_tokenizer_file(key):
            return True
        unit = _UNIT.fullmatch(key)
        if unit is not None:
            return int(unit[2]) < self.n_units
        chunk = _CHUNK.fullmatch(key)
        if chunk is None or chunk[1] not in self._arrays:
            return False
        # Arrays have one chunk or shard for a unit, and no more along other axes.
        return int(chunk[2]) < self.n_units and not chunk[3].strip("/0")


class CopyKeys:
    """The keys of a copy that has not ended, whose manifest and plan may be missing.

    A copy begins in an empty folder, so that all that has the form of a store's object
    is the copy's.
    """

    _SITES = re.compile(
        r"(acts|norm|scale|step)/[^/]+/(zarr\.json|c/\d{1,12}(/\d{1,12})*)"
    )
    _OTHERS = re.compile(
        r"(tokens|rows)/(zarr\.json|c/\d{1,12}(/\d{1,12})*)"
        r"|(units|columns|norms|plan)(-\d+)?(/\d{5,10}\.(json|stats)|\.stats|\.json)"
        r"|columns(-\d+)?/(zarr\.json|[a-z]+/(zarr\.json|c(/\d{1,12})+))"
        r"|blocks/\d{5,10}\.json|(acts|norm|scale|step)/zarr\.json"
        r"|zarr\.json|README\.md|norms\.svg|croissant\.json|copy\.json|removing\.json|features\.(json|safetensors)"
    )

    def __contains__(self, key: str) -> bool:
        if not key.isprintable():
            return False
        if is_tokenizer_file(key) or self._SITES.fullmatch(key) is not None:
            return True
        return self._OTHERS.fullmatch(key) is not None


def keys_of(storage: Storage) -> tuple[StoreKeys, StoreManifest | None]:
    """Return the keys of the store in a folder, and its manifest if it is finished.

    Those of extensions that have not ended are among them.

    Raises:
        ObjectError: There is neither a manifest nor a plan.
        StoreError: They cannot be read.
    """
    manifest = None
    n_known = 0
    if storage.exists(object_keys.MANIFEST):
        manifest = read_manifest(storage)
        n_known = len(manifest.generations)
    plans = plans_of(storage, n_known)
    if manifest is None and not plans:
        raise ObjectError(f"{storage.url}: there is no {object_keys.PLAN}")
    return StoreKeys(manifest, plans), manifest


def is_mark(storage: Storage, key: str) -> bool:
    """Return whether an object is a mark of ours, and not a file that is called so."""
    try:
        values = parsed_json(storage.read(key, SMALL_JSON), f"{storage.url}/{key}")
    except (ObjectError, CorruptError):
        return False
    return isinstance(values, dict) and values.get("format") == "actstore"


def plans_of(storage: Storage, first: int) -> list[Plan]:
    """Return the plans of a store from a generation on, until one is not there."""
    plans = []
    for generation in range(first, first + 1000):
        try:
            plans.append(read_plan(storage, generation))
        except CorruptError:
            raise
        except ObjectError:
            break
    return plans


def in_steps(keys: Iterable[str]) -> list[list[str]]:
    """Return keys in the order in which they are removed, step by step.

    Keys of one step may go in any order; REMOVAL is in none, for it goes last.
    """
    steps: list[list[str]] = [[] for _ in _STEPS]
    for key in keys:
        for number, pattern in enumerate(_STEPS):
            if pattern.fullmatch(key):
                # a manifest matches the third as well
                steps[number].append(key)
                break
    return steps
