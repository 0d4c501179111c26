"""What a store tells Zarr about itself: the `zarr.json` of arrays and groups; and the
page for people.

Arrays are there before their units. A group lists what is below it (consolidated
metadata) once a generation is finished: it then says what the manifest says, while the
arrays' own `zarr.json` may be ahead of both. A store of format 1.0 has neither that
list nor names of dimensions.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from actstore.format import keys, object_sizes
from actstore.format.shard import plain_metadata
from schemas.harvest import Plan
from schemas.manifest import StoreManifest

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

Written by actstore, format version {version}. It is a Zarr v3 group: `acts/<site>` holds the activations, `norm/<site>`
their L2 norms, `rows` the (sequence, position) of each row, `tokens` the token ids. `manifest.json` says the rest.

Model: {model}. Corpus: {corpus}. Sites at first: {sites}.

    import actstore
    store = actstore.open("this folder")
    x = store.read(store.sites[0], [0, 1, 2])

With zarr-python or xarray, `import actstore.format.zarr_bfloat16` first if the values are bfloat16.
"""


def metadata_files(plan: Plan | StoreManifest) -> dict[str, bytes]:
    """`zarr.json` of every group and array that a plan writes to; of a manifest: all of
    the store but the columns.
    """
    found = arrays(plan)
    return files(
        groups(
            plan, found, all_columns(plan) if isinstance(plan, StoreManifest) else None
        )
        | found
    )


def group_files(manifest: StoreManifest) -> dict[str, bytes]:
    """`zarr.json` of the groups, as a finished store has them."""
    return files(groups(manifest, arrays(manifest), all_columns(manifest)))


def column_files(plan: Plan, n_units: int, n_sites: int) -> dict[str, bytes]:
    """`zarr.json` of a generation's columns and of their group."""
    found, prefix = (
        columns(plan, plan.generation, n_units, n_sites),
        keys.columns_prefix(plan.generation),
    )
    return files({prefix: groups(plan, found, {})[prefix], **found})


def files(nodes: Nodes) -> dict[str, bytes]:
    """The objects that groups and arrays are."""
    return {
        f"{key}/zarr.json".lstrip("/"): encoded(metadata)
        for key, metadata in nodes.items()
    }


def arrays(plan: Plan | StoreManifest) -> Nodes:
    """Every array that a plan writes to; of a manifest: all of the store but the
    columns.
    """
    layout, minor = plan.layout, plan.format_minor
    found: Nodes = {}
    if isinstance(plan, StoreManifest) or not plan.adds_sites:
        shape, chunk = (
            (layout.n_units * layout.unit_sequences, layout.context),
            (
                layout.unit_sequences,
                layout.context,
            ),
        )
        more = _more(
            minor, ("sequence", "position"), "token ids; -1: padding, or none there"
        )
        found["tokens"] = plain_metadata(shape, chunk, np.int32, -1, more)
        more = _more(
            minor,
            ("row", "pair"),
            "sequence and position of each row; -1: no row there",
        )
        found["rows"] = plain_metadata(
            (layout.n_slots, 2), (layout.capacity, 2), np.int32, -1, more
        )
    rows, unit = (layout.n_slots,), (layout.capacity,)
    for site in plan.sites:
        channel, row = f"d_{site.d}", _more(minor, ("row",))
        acts = object_sizes.codec(plan.spec, layout, site.d).metadata(
            layout.n_slots, _more(minor, ("row", channel))
        )
        found[keys.acts_key(site.name)] = acts
        found[keys.norm_key(site.name)] = plain_metadata(rows, unit, np.float32, 0, row)
        if plan.spec.dtype == "int8":
            steps, more = (
                (layout.n_units, 2, site.d),
                _more(minor, ("unit", "moment", channel)),
            )
            found[keys.scale_key(site.name)] = plain_metadata(
                rows, unit, np.float16, 0, row
            )
            found[keys.step_key(site.name)] = plain_metadata(
                steps, (1, 2, site.d), np.float32, 0, more
            )
    return found


def columns(
    plan: Plan | StoreManifest, generation: int, n_units: int, n_sites: int
) -> Nodes:
    """The columns' arrays of one generation."""
    found: Nodes = {}
    for name, (dtype, dimensions) in object_sizes.COLUMNS.items():
        shape = object_sizes.column_shape(name, n_units, n_sites)
        more = _more(plan.format_minor, dimensions, _COLUMNS[name])
        found[f"{keys.columns_prefix(generation)}/{name}"] = plain_metadata(
            shape, shape, dtype, 0, more
        )
    return found


def all_columns(manifest: StoreManifest) -> Nodes:
    """The columns' arrays of all generations."""
    found: Nodes = {}
    n_units, n_sites = 0, 0
    for i, generation in enumerate(manifest.generations):
        n_units = max(n_units, generation.first_unit + generation.n_units)
        n_sites += len(generation.sites) if generation.first_unit == 0 else 0
        found |= columns(manifest, i, n_units, n_sites)
    return found


def groups(plan: Plan | StoreManifest, found: Nodes, listed: Nodes | None) -> Nodes:
    """The root group and those that some arrays lie in. listed: what the root lists
    beside them; None: no lists.
    """
    names = _top(found)
    if not plan.format_minor:
        return {name: _group({}) for name in ("", *names)}
    about = {
        "format": "actstore",
        "format_version": plan.format_version,
        "format_minor": plan.format_minor,
    }
    made = {
        name: _group({"description": _GROUPS[name]} if name in _GROUPS else {})
        for name in names
    }
    if listed is None:
        return {"": _group(about), **made}
    lists: dict[str, Nodes] = {name: {} for name in names}
    for key, one in found.items():
        name, slash, below = key.partition("/")
        if slash:
            lists[name][below] = one
    empty = {
        name: _listing(made.get(name, _group({})), {}) for name in _top(found | listed)
    }
    root = _listing(_group(about), empty | found | listed)
    return {"": root, **{name: _listing(made[name], lists[name]) for name in names}}


def _top(nodes: Nodes) -> list[str]:
    """The groups that some arrays lie in."""
    return sorted({key.split("/")[0] for key in nodes if "/" in key})


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _listing(group: dict[str, Any], below: Nodes) -> dict[str, Any]:
    """A group with the metadata of all below it, as zarr-python consolidates them; no
    reader needs it.

    zarr-python 3.1 loses members unless those of a group stand together, and the groups
    before all arrays below them.
    """
    ordered = {
        key: below[key] for key in sorted(below, key=lambda key: (key.count("/"), key))
    }
    return {
        **group,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": ordered,
        },
    }


def _more(minor: int, dimensions: tuple[str, ...], what: str = "") -> dict[str, Any]:
    """What an array says about itself since format 1.1."""
    return (
        {
            "dimension_names": list(dimensions),
            "attributes": {"description": what} if what else {},
        }
        if minor
        else {}
    )


def readme(plan: Plan) -> bytes:
    """The store's README.md."""
    spec, names = plan.spec, ", ".join(site.name for site in plan.sites)
    version = f"{plan.format_version}.{plan.format_minor}"
    return README.format(
        version=version, model=spec.model.name, corpus=spec.corpus.name, sites=names
    ).encode()


def encoded(value: dict[str, Any]) -> bytes:
    """JSON as the store keeps it."""
    return (json.dumps(value, indent=1) + "\n").encode()
