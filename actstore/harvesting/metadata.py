"""The arrays' `zarr.json`, the groups, the page for people: what a store holds before its first unit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from actstore.format import layout as at
from actstore.format.dtypes import numpy_dtype
from actstore.format.shard import ShardCodec, plain_metadata
from schemas.harvest import Plan
from schemas.manifest import StoreManifest

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
README = """# A store of language-model activations

Written by actstore, format version {version}. It is a Zarr v3 group: `acts/<site>` holds the activations, `norm/<site>`
their L2 norms, `rows` the (sequence, position) of each row, `tokens` the token ids. `manifest.json` says the rest.

Model: {model}. Corpus: {corpus}. Sites at first: {sites}.

    import actstore
    store = actstore.open("this folder")
    x = store.read(store.sites[0], [0, 1, 2])

With zarr-python 3.1, `import actstore.format.zarr_bfloat16` first if the values are bfloat16.
"""


def shard_codec(plan: Plan | StoreManifest, d: int) -> ShardCodec:
    """How a site of width d is stored."""
    layout = plan.layout
    return ShardCodec(plan.spec.codec, numpy_dtype(plan.spec.dtype), layout.chunk_rows, d, layout.unit_chunks)


def metadata_files(plan: Plan | StoreManifest) -> dict[str, bytes]:
    """Every group and array that a plan writes to, by key; of a manifest: all of the store but the columns."""
    layout = plan.layout
    arrays: dict[str, dict[str, Any]] = {}
    if isinstance(plan, StoreManifest) or not plan.adds_sites:
        shape = (layout.n_units * layout.unit_sequences, layout.context)
        arrays["tokens"] = plain_metadata(shape, (layout.unit_sequences, layout.context), np.int32, -1)
        arrays["rows"] = plain_metadata((layout.n_slots, 2), (layout.capacity, 2), np.int32, -1)
    for site in plan.sites:
        arrays[at.acts_key(site.name)] = shard_codec(plan, site.d).metadata(layout.n_slots)
        arrays[at.norm_key(site.name)] = plain_metadata((layout.n_slots,), (layout.capacity,), np.float32, 0)
        if plan.spec.dtype == "int8":
            steps = (layout.n_units, 2, site.d)
            arrays[at.scale_key(site.name)] = plain_metadata((layout.n_slots,), (layout.capacity,), np.float16, 0)
            arrays[at.step_key(site.name)] = plain_metadata(steps, (1, 2, site.d), np.float32, 0)
    groups = {"", *(key.split("/")[0] + "/" for key in arrays if "/" in key)}
    files = {f"{group}zarr.json": encoded(GROUP) for group in groups}
    return files | {f"{key}/zarr.json": encoded(metadata) for key, metadata in arrays.items()}


def readme(plan: Plan) -> bytes:
    """The store's README.md."""
    spec, names = plan.spec, ", ".join(site.name for site in plan.sites)
    version = plan.format_version
    return README.format(version=version, model=spec.model.name, corpus=spec.corpus.name, sites=names).encode()


def encoded(value: dict[str, Any]) -> bytes:
    """JSON as the store keeps it."""
    return (json.dumps(value, indent=1) + "\n").encode()
