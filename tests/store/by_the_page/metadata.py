"""`zarr.json` of arrays and groups."""

from __future__ import annotations

from typing import Any

VALID = "row i is valid where rows[i, 0] >= 0 (`rows` of the root group)"
GROUPS = {
    "acts": f"activations by site; {VALID}",
    "norm": f"L2 norms of the rows by site; {VALID}",
    "scale": "of each row; activation = step[unit, 0] + step[unit, 1] * (scale[row] * acts[row])",
    "step": "channel mean and step of each unit",
}


def named(name: str, configuration: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def array(
    shape: Any, chunk: Any, dtype: str, fill: float, dimensions: str, what: str = ""
) -> dict[str, Any]:
    first = (
        {"name": "bytes"}
        if dtype in {"int8", "uint8"}
        else named("bytes", {"endian": "little"})
    )
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": named("regular", {"chunk_shape": list(chunk)}),
        "chunk_key_encoding": named("default", {"separator": "/"}),
        "fill_value": fill,
        "codecs": [first, {"name": "crc32c"}],
        "dimension_names": dimensions.split(),
        "attributes": {"description": what} if what else {},
        "storage_transformers": [],
    }


def group(attributes: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    ordered = {
        key: below[key] for key in sorted(below, key=lambda key: (key.count("/"), key))
    }
    listing = {"kind": "inline", "must_understand": False, "metadata": ordered}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": listing,
    }
