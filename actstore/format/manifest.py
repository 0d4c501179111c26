"""Reading `manifest.json`, which makes a folder a store, and the plans."""

from __future__ import annotations

import json

from pydantic import ValidationError

from actstore.errors import CorruptError, FormatVersionError, NotAStoreError, ObjectError, UnfinishedError
from actstore.format import layout as at
from actstore.format.storage import Storage
from actstore.validation import sentences
from schemas.harvest import Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION, StoreManifest


def read_manifest(storage: Storage) -> StoreManifest:
    """The manifest, or the error that says why there is none."""
    try:
        data = storage.read(at.MANIFEST)
    except ObjectError:
        if storage.exists(at.plan_key()):
            raise UnfinishedError(
                f"{storage.url}: this harvest (or import) has not ended; run the same command again, it goes on"
            ) from None
        raise NotAStoreError(
            f"{storage.url}: wanted a store, but there is no {at.MANIFEST}; check the URL (`actstore ls` lists stores)"
        ) from None
    return parse_manifest(data, storage.url)


def parse_manifest(data: bytes, url: str) -> StoreManifest:
    """Check format and version before anything else, so that a newer store gives the right error."""
    _check_format(data, url, at.MANIFEST)
    try:
        return StoreManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptError(f"{url}/{at.MANIFEST}: not a valid manifest: {sentences(error)}") from error


def read_plan(storage: Storage, generation: int = 0) -> Plan:
    """A generation's plan. Raises ObjectError where there is none, FormatVersionError or CorruptError."""
    key = at.plan_key(generation)
    data = storage.read(key)
    _check_format(data, storage.url, key)
    try:
        return Plan.model_validate_json(data)
    except ValidationError as error:
        raise CorruptError(f"{storage.url}/{key}: not a valid plan: {sentences(error)}") from error


def _check_format(data: bytes, url: str, key: str) -> None:
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise CorruptError(f"{url}/{key}: not valid JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != "actstore":
        raise NotAStoreError(f"{url}: its {key} is not one of actstore's")
    version, minor = raw.get("format_version"), raw.get("format_minor", 0)
    # A newer minor has keys that this one would refuse as unknown; an older one has none that are gone.
    newer = isinstance(minor, int) and minor > FORMAT_MINOR
    if version != FORMAT_VERSION or newer:
        raise FormatVersionError(
            f"{url}: format version {version}.{minor}, this actstore reads {FORMAT_VERSION}.0 to "
            f"{FORMAT_VERSION}.{FORMAT_MINOR}; upgrade actstore to read it"
        )
