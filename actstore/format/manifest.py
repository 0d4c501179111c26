"""Reading `manifest.json`, which makes a folder a store, and the plans."""

from __future__ import annotations

from actstore.errors import (
    CorruptError,
    FormatVersionError,
    NotAStoreError,
    ObjectError,
    UnfinishedError,
)
from actstore.format import keys
from actstore.format.json_records import parsed_json, shallow_record
from actstore.format.manifest_checks import check_manifest, check_plan
from actstore.format.object_sizes import MANIFEST_JSON, RECORD_JSON
from actstore.format.storage import Storage
from schemas.harvest import Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION, StoreManifest


def read_manifest(storage: Storage) -> StoreManifest:
    """The manifest, checked as a whole, or the error that says why there is none."""
    try:
        data = storage.read(keys.MANIFEST, MANIFEST_JSON)
    except CorruptError:
        raise
    except ObjectError:
        if storage.exists(keys.plan_key()):
            raise UnfinishedError(
                f"{storage.url}: this harvest (or import) has not ended; run the same"
                " command again, it goes on"
            ) from None
        raise NotAStoreError(
            f"{storage.url}: wanted a store, but there is no {keys.MANIFEST}; "
            "check the URL (`actstore ls` lists stores)"
        ) from None
    return parse_manifest(data, storage.url)


def parse_manifest(data: bytes, url: str) -> StoreManifest:
    """Check format and version before anything else, so that a newer store gives the
    right error.
    """
    _check_format(data, url, keys.MANIFEST)
    manifest = shallow_record(StoreManifest, data, f"{url}/{keys.MANIFEST}")
    check_manifest(manifest, url)
    return manifest


def read_plan(storage: Storage, generation: int = 0) -> Plan:
    """A generation's plan. Raises ObjectError where there is none, FormatVersionError
    or CorruptError.
    """
    key = keys.plan_key(generation)
    data = storage.read(key, RECORD_JSON)
    _check_format(data, storage.url, key)
    plan = shallow_record(Plan, data, f"{storage.url}/{key}")
    check_plan(plan, f"{storage.url}/{key}")
    return plan


def _check_format(data: bytes, url: str, key: str) -> None:
    raw = parsed_json(data, f"{url}/{key}")
    if not isinstance(raw, dict) or raw.get("format") != "actstore":
        raise NotAStoreError(f"{url}: its {key} is not one of actstore's")
    version, minor = raw.get("format_version"), raw.get("format_minor", 0)
    # A newer minor has keys that this one would refuse as unknown; an older one has
    # none that are gone.
    newer = isinstance(minor, int) and minor > FORMAT_MINOR
    if version != FORMAT_VERSION or isinstance(version, bool) or newer:
        raise FormatVersionError(
            f"{url}: format version {version}.{minor}, this actstore reads"
            f" {FORMAT_VERSION}.0 to {FORMAT_VERSION}.{FORMAT_MINOR}; upgrade actstore"
            " to read it"
        )
