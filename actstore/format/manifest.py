"""Reading `manifest.json`: what makes a folder a store."""

from __future__ import annotations

from actstore.errors import CorruptError, FormatVersionError, NotAStoreError, ObjectError, UnfinishedError
from actstore.format import layout as at
from actstore.format.checks import check_manifest
from actstore.format.records import parsed_json, shallow_record
from actstore.format.sizes import MANIFEST_JSON
from actstore.format.storage import Storage
from schemas.manifest import FORMAT_VERSION, StoreManifest


def read_manifest(storage: Storage) -> StoreManifest:
    """The manifest, checked as a whole, or the error that says why there is none."""
    try:
        data = storage.read(at.MANIFEST, MANIFEST_JSON)
    except CorruptError:
        raise
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
    raw = parsed_json(data, f"{url}/{at.MANIFEST}")
    if not isinstance(raw, dict) or raw.get("format") != "actstore":
        raise NotAStoreError(f"{url}: its {at.MANIFEST} is not one of actstore's")
    version = raw.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise FormatVersionError(
            f"{url}: format version {version}, this actstore reads {FORMAT_VERSION}; upgrade actstore to read it"
        )
    manifest = shallow_record(StoreManifest, data, f"{url}/{at.MANIFEST}")
    check_manifest(manifest, url)
    return manifest
