"""Reads a store's `manifest.json` and its plans, and checks them.

A folder is a finished store once it has a manifest.
"""

from __future__ import annotations

from actstore.errors import (
    CorruptError,
    FormatVersionError,
    NotAStoreError,
    ObjectError,
    UnfinishedError,
)
from actstore.format import object_keys
from actstore.format.json_records import parsed_json, shallow_record
from actstore.format.manifest_checks import check_manifest, check_plan
from actstore.format.object_sizes import MANIFEST_JSON, RECORD_JSON
from actstore.format.storage import Storage
from schemas.harvest import Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION, StoreManifest


def read_manifest(storage: Storage) -> StoreManifest:
    """Return the manifest, checked as a whole.

    Raises:
        UnfinishedError: There is a plan or a copy's record, but no manifest yet.
        NotAStoreError: There is neither a plan nor a manifest, or the manifest is not
            one of actstore's.
        FormatVersionError: A newer actstore has written the manifest.
        CorruptError: The manifest is damaged: it contradicts itself, or has values that
            no manifest can have.
    """
    try:
        data = storage.read(object_keys.MANIFEST, MANIFEST_JSON)
    except CorruptError:
        raise
    except ObjectError:
        check_no_copy(storage)
        if storage.exists(object_keys.plan_key()):
            raise UnfinishedError(
                f"{storage.url}: this harvest (or import) has not ended; run the same"
                " command again to go on with it"
            ) from None
        raise NotAStoreError(
            f"{storage.url}: wanted a store, but there is no {object_keys.MANIFEST};"
            " check the URL (`actstore ls` lists stores)"
        ) from None
    return parse_manifest(data, storage.url)


def check_no_copy(storage: Storage) -> None:
    """Raise UnfinishedError where a store without a manifest is being copied."""
    if storage.exists(object_keys.COPY):
        raise UnfinishedError(
            f"{storage.url}: a copy of a store that has not ended; run the same"
            " `actstore cp` (or push, pull) again to go on with it"
        )


def parse_manifest(data: bytes, url: str) -> StoreManifest:
    """Return the manifest in the bytes of its JSON file, checked as a whole.

    Raises:
        NotAStoreError: See `read_manifest`.
        FormatVersionError: See `read_manifest`.
        CorruptError: See `read_manifest`.
    """
    # The version is checked first: a newer format may well fail the other checks, and
    # the user should be told to upgrade, not that the store is damaged.
    _check_format(data, url, object_keys.MANIFEST)
    manifest = shallow_record(StoreManifest, data, f"{url}/{object_keys.MANIFEST}")
    check_manifest(manifest, url)
    return manifest


def read_plan(storage: Storage, generation: int = 0) -> Plan:
    """Return a generation's plan, checked.

    Raises:
        ObjectError: There is no plan of that generation.
        NotAStoreError: The plan is not one of actstore's.
        FormatVersionError: A newer actstore has written the plan.
        CorruptError: The plan is damaged: it has values that no plan can have.
    """
    key = object_keys.plan_key(generation)
    data = storage.read(key, RECORD_JSON)
    _check_format(data, storage.url, key)
    plan = shallow_record(Plan, data, f"{storage.url}/{key}")
    check_plan(plan, f"{storage.url}/{key}")
    return plan


def _check_format(data: bytes, url: str, key: str) -> None:
    """Check that a JSON file is actstore's, and of a version that can be read."""
    values = parsed_json(data, f"{url}/{key}")
    if not isinstance(values, dict) or values.get("format") != "actstore":
        raise NotAStoreError(f"{url}: its {key} is not one of actstore's")
    version = values.get("format_version")
    minor = values.get("format_minor", 0)
    # A newer minor version has keys that this version would refuse as unknown. An older
    # one can be read, since no version has dropped a key.
    newer = isinstance(minor, int) and minor > FORMAT_MINOR
    # In Python True equals 1, but JSON's `true` is no version.
    if version != FORMAT_VERSION or isinstance(version, bool) or newer:
        raise FormatVersionError(
            f"{url}: format version {version}.{minor}, this actstore reads"
            f" {FORMAT_VERSION}.0 to {FORMAT_VERSION}.{FORMAT_MINOR}; upgrade actstore"
            " to read it"
        )
