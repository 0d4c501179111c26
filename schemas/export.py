"""JSON Schemas of the files that a store and a run have: `python -m schemas.export`
writes them to `schemas/json/`.

They describe what is written: a key is required iff it is always there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from schemas.base import Schema
from schemas.harvest import Plan
from schemas.manifest import BlockRecord, Claim, StoreManifest, UnitRecord
from schemas.records import EvalRecord, RunRecord, StoreOrigin
from schemas.stream import StreamState

FOLDER = Path(__file__).parent / "json"
FILES: dict[str, type[Schema]] = {
    "plan": Plan,
    "manifest": StoreManifest,
    "unit": UnitRecord,
    "block": BlockRecord,
    "claim": Claim,
    "stream_state": StreamState,
    "sae": RunRecord,
    "eval": EvalRecord,
    "store": StoreOrigin,
}
"""By name of the schema; `sae`, `eval` and `store` are the files of these names of a
run.
"""


class _Written(GenerateJsonSchema):
    """Of JSON as it is written: defaults are there, NaN and infinity are strings, and
    fields have no titles.
    """

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: ARG002
        return field.get("serialization_exclude_if") is None

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        number = super().float_schema(schema)
        above, below = {"ge", "gt"} & schema.keys(), {"le", "lt"} & schema.keys()
        names = [] if above else ["-Infinity"]
        names += [] if below else ["Infinity"]
        names += [] if above or below else ["NaN"]
        if not names or schema.get("allow_inf_nan") is False:
            return number
        return {"anyOf": [number, {"enum": names}]}


def export() -> dict[str, str]:
    """The schemas' text by file name."""
    return {
        f"{name}.json": json.dumps(_of(one), indent=1) + "\n"
        for name, one in FILES.items()
    }


def _of(schema: type[Schema]) -> dict[str, Any]:
    made = schema.model_json_schema(mode="serialization", schema_generator=_Written)
    return {"$schema": GenerateJsonSchema.schema_dialect, **_plain(made)}


def _plain(value: Any) -> Any:
    """Without what only options and error messages use."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {
            key: _plain(one) for key, one in value.items() if (key, one) not in _OURS
        }
    return value


_OURS = [("format", "count"), ("format", "size")]


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, text in export().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
