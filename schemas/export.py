"""The JSON Schemas of the files in a store and in a run.

`python -m schemas.export` writes them to `schemas/json/`.

They describe what is written: a key is required iff it is always there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from schemas.base import Schema
from schemas.catalog import PublishedRun, PublishedStore, TagRecord
from schemas.explorer import ExplorerRecord
from schemas.harvest import Plan
from schemas.manifest import (
    BlockRecord,
    Claim,
    CopyRecord,
    StoreManifest,
    UnitRecord,
)
from schemas.records import (
    EvalRecord,
    MachineRecord,
    RunRecord,
    StitchRecord,
    StoreOrigin,
)
from schemas.stream import StreamState

FOLDER = Path(__file__).parent / "json"
FILES: dict[str, type[Schema]] = {
    "plan": Plan,
    "manifest": StoreManifest,
    "unit": UnitRecord,
    "block": BlockRecord,
    "claim": Claim,
    "copy": CopyRecord,
    "stream_state": StreamState,
    "sae": RunRecord,
    "eval": EvalRecord,
    "store": StoreOrigin,
    "machine": MachineRecord,
    "stitch": StitchRecord,
    "explorer": ExplorerRecord,
    "catalog_store": PublishedStore,
    "catalog_run": PublishedRun,
    "catalog_tag": TagRecord,
}
"""The schemas by name; from `sae` to `explorer` they are files in a run's folder.

`explorer` is its `explorer/meta.json`; those that begin with `catalog_` are a catalog's
records.
"""


class _Written(GenerateJsonSchema):
    """Describes JSON as it is written, not as it may be read.

    Fields with a default are there, NaN and infinity are strings, and fields have no
    titles.
    """

    # A default is written like any other value, so a reader may rely on the key; only
    # what `exclude_if` may leave out is optional.
    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: ARG002
        return field.get("serialization_exclude_if") is None

    # A title would be the field's name once more, with capitals.
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        number = super().float_schema(schema)
        has_lower_bound = "ge" in schema or "gt" in schema
        has_upper_bound = "le" in schema or "lt" in schema
        # What is not below any number may be infinite; NaN fits no bound.
        not_finite = []
        if not has_lower_bound:
            not_finite.append("-Infinity")
        if not has_upper_bound:
            not_finite.append("Infinity")
        if not has_lower_bound and not has_upper_bound:
            not_finite.append("NaN")
        if not not_finite or schema.get("allow_inf_nan") is False:
            return number
        return {"anyOf": [number, {"enum": not_finite}]}


def export() -> dict[str, str]:
    """Return the text of every JSON Schema, by file name."""
    return {
        f"{name}.json": json.dumps(_json_schema(schema), indent=1) + "\n"
        for name, schema in FILES.items()
    }


def _json_schema(schema: type[Schema]) -> dict[str, Any]:
    generated = schema.model_json_schema(
        mode="serialization", schema_generator=_Written
    )
    dialect = GenerateJsonSchema.schema_dialect
    return {"$schema": dialect, **_without_our_formats(generated)}


def _without_our_formats(value: Any) -> Any:
    """Return a JSON schema without the formats that only options and messages use."""
    if isinstance(value, list):
        return [_without_our_formats(element) for element in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_our_formats(inner)
        for key, inner in value.items()
        if not (key == "format" and inner in OUR_FORMATS)
    }


OUR_FORMATS = ("count", "size")


def main() -> int:
    """Write the JSON Schemas to their folder."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in export().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
