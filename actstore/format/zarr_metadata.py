"""The `zarr.json` of a store's arrays and groups, and its README.

Arrays are there before their units. A group lists what is below it (consolidated
metadata) once a generation is finished: it then says what the manifest says, while the
arrays' own `zarr.json` may be ahead of both. A store of format 1.0 has neither that
list nor names of dimensions.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from actstore.format import object_keys, object_sizes
from actstore.format.shard import plain_metadata
from schemas.harvest import Plan
from schemas.manifest import StoreManifest
from schemas.source import Site

Nodes = dict[str, dict[str, Any]]
"""Arrays and groups by key; the root group is the empty key."""

_VALID = "row i is valid where rows[i, 0] >= 0 (`rows` of the root group)"
_GROUPS = {
    "acts": f"activations by site; {_VALID}",
    "norm": f"L2 norms of the rows by site; {_VALID}",
    "scale": (
        "of each row; activation = step[unit, 0] + step[unit, 1] * (scale[row] *"
        " acts[row])"
    ),
    "step": "channel mean and step of each unit",
}
_COLUMNS = {
    "rows": "valid rows; they are the unit's first",
    "bytes": "stored bytes of the unit's objects",
    "digests": "blake3 of the unit's records",
    "sums": "count, non-finite rows, sum, sum of squares, maximum",
}
README = """# A store of language-model activations

Written by actstore, format version {version}. It is a Zarr v3 group: `acts/<site>`\
 holds the activations, `norm/<site>`
their L2 norms, `rows` the (sequence, position) of each row, `tokens` the token ids.\
 `manifest.json` says the rest.

Model: {model}. Corpus: {corpus}. Sites at first: {sites}.

    import actstore
    store = actstore.open("this folder")
    x = store.read(store.sites[0], [0, 1, 2])

With zarr-python or xarray, `import actstore.format.zarr_bfloat16` first if the values\
 are bfloat16.
"""


def metadata_files(plan: Plan | StoreManifest) -> dict[str, bytes]:
    """Return the `zarr.json` of every group and array that a plan writes to, by key.

    For a manifest: of all in the store but the columns.
    """
    below = arrays(plan)
    listed = all_columns(plan) if isinstance(plan, StoreManifest) else None
    return files(groups(plan, below, listed) | below)


def group_files(manifest: StoreManifest) -> dict[str, bytes]:
    """Return the `zarr.json` of the groups of a finished store, by key."""
    return files(groups(manifest, arrays(manifest), all_columns(manifest)))


def column_files(
    plan: Plan,
    n_units: int,
    n_sites: int,
) -> dict[str, bytes]:
    """Return the `zarr.json` of a generation's columns and of their group, by key."""
    below = columns(plan, plan.generation, n_units, n_sites)
    prefix = object_keys.columns_prefix(plan.generation)
    group = groups(plan, below, {})[prefix]
    return files({prefix: group, **below})


def files(nodes: Nodes) -> dict[str, bytes]:
    """Return the objects that groups and arrays are, by key."""
    by_key = {}
    for key, metadata in nodes.items():
        by_key[f"{key}/zarr.json".lstrip("/")] = encoded(metadata)
    return by_key


def arrays(plan: Plan | StoreManifest) -> Nodes:
    """Return every array that a plan writes to, by key.

    For a manifest: all in the store but the columns.
    """
    nodes: Nodes = {}
    # A generation that adds sites is at tokens that are there already.
    if isinstance(plan, StoreManifest) or not plan.adds_sites:
        nodes |= _token_arrays(plan)
    for site in plan.sites:
        nodes |= _site_arrays(plan, site)
    return nodes


def _token_arrays(plan: Plan | StoreManifest) -> Nodes:
    """Return the arrays that all sites share: `tokens` and `rows`."""
    layout = plan.layout
    n_sequences = layout.n_units * layout.unit_sequences
    tokens = plain_metadata(
        (n_sequences, layout.context),
        (layout.unit_sequences, layout.context),
        np.int32,
        -1,
        _more(
            plan.format_minor,
            ("sequence", "position"),
            "token ids; -1: padding, or none there",
        ),
    )
    rows = plain_metadata(
        (layout.n_slots, 2),
        (layout.capacity, 2),
        np.int32,
        -1,
        _more(
            plan.format_minor,
            ("row", "pair"),
            "sequence and position of each row; -1: no row there",
        ),
    )
    return {"tokens": tokens, "rows": rows}


def _site_arrays(plan: Plan | StoreManifest, site: Site) -> Nodes:
    """Return the arrays of one site: activations, norms, and what int8 needs."""
    layout = plan.layout
    minor = plan.format_minor
    channel = f"d_{site.d}"
    by_row = _more(minor, ("row",))
    slots = (layout.n_slots,)
    unit_slots = (layout.capacity,)
    codec = object_sizes.codec(plan.spec, layout, site.d)
    acts = codec.metadata(layout.n_slots, _more(minor, ("row", channel)))
    norm = plain_metadata(slots, unit_slots, np.float32, 0, by_row)
    nodes = {
        object_keys.acts_key(site.name): acts,
        object_keys.norm_key(site.name): norm,
    }
    if plan.spec.dtype == "int8":
        scale = plain_metadata(slots, unit_slots, np.float16, 0, by_row)
        step = plain_metadata(
            (layout.n_units, 2, site.d),
            (1, 2, site.d),
            np.float32,
            0,
            _more(minor, ("unit", "moment", channel)),
        )
        nodes[object_keys.scale_key(site.name)] = scale
        nodes[object_keys.step_key(site.name)] = step
    return nodes


def columns(
    plan: Plan | StoreManifest, generation: int, n_units: int, n_sites: int
) -> Nodes:
    """Return the arrays of one generation's unit columns, each one chunk."""
    nodes: Nodes = {}
    prefix = object_keys.columns_prefix(generation)
    for name, (dtype, dimensions) in object_sizes.COLUMNS.items():
        shape = object_sizes.column_shape(name, n_units, n_sites)
        more = _more(plan.format_minor, dimensions, _COLUMNS[name])
        nodes[f"{prefix}/{name}"] = plain_metadata(shape, shape, dtype, 0, more)
    return nodes


def all_columns(manifest: StoreManifest) -> Nodes:
    """Return the arrays of all generations' unit columns."""
    nodes: Nodes = {}
    for i, store in enumerate(object_sizes.sizes_by_generation(manifest.generations)):
        nodes |= columns(manifest, i, store.n_units, store.n_sites)
    return nodes


def groups(
    plan: Plan | StoreManifest,
    below: Nodes,
    listed: Nodes | None,
) -> Nodes:
    """Return the root group and those that some arrays lie in.

    Args:
        plan: What says the format and its version.
        below: The arrays.
        listed: What the root lists beside them; None: groups list nothing.
    """
    names = _group_names(below)
    if not plan.format_minor:
        return {name: _group({}) for name in ("", *names)}
    about = {
        "format": "actstore",
        "format_version": plan.format_version,
        "format_minor": plan.format_minor,
    }
    plain_groups = {}
    for name in names:
        described = name in _GROUPS
        plain_groups[name] = _group({"description": _GROUPS[name]} if described else {})
    if listed is None:
        return {"": _group(about), **plain_groups}
    # `acts/blocks.0.hook_z` is listed by the group `acts`, under the rest of its key.
    below_group: dict[str, Nodes] = {name: {} for name in names}
    for key, array in below.items():
        name, slash, rest = key.partition("/")
        if slash:
            below_group[name][rest] = array
    # The root lists groups too, with empty lists of their own.
    empty_groups = {}
    for name in _group_names(below | listed):
        group = plain_groups.get(name, _group({}))
        empty_groups[name] = _listing(group, {})
    nodes = {"": _listing(_group(about), empty_groups | below | listed)}
    for name in names:
        nodes[name] = _listing(plain_groups[name], below_group[name])
    return nodes


def _group_names(nodes: Nodes) -> list[str]:
    """Return the names of the groups that some arrays lie in, sorted."""
    nested = [key for key in nodes if "/" in key]
    return sorted({key.split("/")[0] for key in nested})


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return a group's `zarr.json`."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _listing(group: dict[str, Any], below: Nodes) -> dict[str, Any]:
    """Return a group's `zarr.json` with the metadata of all below it.

    It is as zarr-python consolidates them; no reader needs it.
    """
    # zarr-python 3.1 loses members unless those of a group stand together, and the
    # groups before all arrays below them.
    ordered_keys = sorted(below, key=lambda key: (key.count("/"), key))
    consolidated = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {key: below[key] for key in ordered_keys},
    }
    return {**group, "consolidated_metadata": consolidated}


def _more(
    minor: int,
    dimensions: tuple[str, ...],
    what: str = "",
) -> dict[str, Any]:
    """Return what an array says about itself since format 1.1."""
    if not minor:
        return {}
    attributes = {"description": what} if what else {}
    return {"dimension_names": list(dimensions), "attributes": attributes}


def readme(plan: Plan) -> bytes:
    """Return the store's README.md."""
    spec = plan.spec
    return README.format(
        version=f"{plan.format_version}.{plan.format_minor}",
        model=spec.model.name,
        corpus=spec.corpus.name,
        sites=", ".join(site.name for site in plan.sites),
    ).encode()


def encoded(value: dict[str, Any]) -> bytes:
    """Return JSON as the store keeps it."""
    return (json.dumps(value, indent=1) + "\n").encode()
