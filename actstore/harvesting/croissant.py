"""Describes a store to search engines, in the vocabulary of MLCommons' Croissant 1.0.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html

It is of the data set as a whole. Single files that never change have their SHA-256; the
arrays are sets of files, whose digests the store's own records have. Licence, authors
and date are not known, and are left out.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from actstore.format import object_keys
from actstore.format.object_sizes import OTHER_FILE
from actstore.format.storage import Storage
from schemas.manifest import StoreManifest

# As the specification has it, word for word: readers compare it.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_SHARDS = "application/x-zarr"
_ARRAYS = {
    "acts": "activations by site: shards of Zarr v3, one for each unit of rows",
    "norm": "L2 norms of the rows by site",
    "tokens": "token ids",
    "rows": "sequence and position of each row",
}


def croissant(storage: Storage, manifest: StoreManifest, name: str) -> bytes:
    """Return a store's `croissant.json`.

    Args:
        storage: Where the store is; its plan and statistics are read.
        manifest: What it holds.
        name: What the data set is called.
    """
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": (
            f"{name}: {manifest.n_rows} rows at each of {len(manifest.sites)} sites,"
            f" {manifest.spec.dtype}, a Zarr v3 group written by actstore. Content id"
            f" {manifest.content_id}."
        ),
        "keywords": ["activations", "language model", "sparse autoencoder", "zarr"],
        "distribution": [*_files(storage, manifest), *_file_sets()],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def _files(storage: Storage, manifest: StoreManifest) -> list[dict[str, Any]]:
    """Return the description of each single file that others may want."""
    newest = len(manifest.generations) - 1
    described = {
        object_keys.plan_key(): ("application/json", "what was harvested, and how"),
        object_keys.merged_stats_key(newest): (
            "application/octet-stream",
            "counts, means, variances and histograms of norms, as docs/FORMAT.md says",
        ),
    }
    files = []
    for key, (encoding, about) in described.items():
        data = storage.read(key, OTHER_FILE)
        files.append(
            {
                "@type": "cr:FileObject",
                "@id": key,
                "name": key,
                "description": about,
                "contentUrl": key,
                "contentSize": f"{len(data)} B",
                "encodingFormat": encoding,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    return files


def _file_sets() -> list[dict[str, Any]]:
    """Return the description of the arrays, each a set of files."""
    return [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": about,
            "encodingFormat": _SHARDS,
            "includes": f"{name}/**",
        }
        for name, about in _ARRAYS.items()
    ]
