"""TrainSpecs and SweepSpecs from YAML files and options: one clear error for what is wrong in them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.train import SweepSpec, TrainSpec

OF_LATENTS = {"sae.k", "sae.l1", "sae.expansion"}  # of `inner`, where an SAE has one


def load_spec(path: str | None, overrides: dict[str, Any]) -> TrainSpec:
    """A TrainSpec from YAML and dotted overrides. Raises SpecError that names an unknown key and the nearest one."""
    from actstore.errors import SpecError
    from schemas.train import TrainSpec
    from trainer.training.sweep import with_values

    raw = with_values(*_with_kind(_yaml(path) if path else {}, overrides))
    if "store" not in raw:
        raise SpecError("which store? give --store URL, or `store:` in the YAML file")
    made: TrainSpec = validated(TrainSpec, raw, path or "the options")
    return made


def _with_kind(raw: dict[str, Any], overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both with the kind of SAE settled (what the stream's mode calls for, else topk), and options that are of the
    latents put where a transcoder or crosscoder has them."""
    mode = overrides.get("stream.mode", raw.get("stream", {}).get("mode"))
    usual = {"pairs": "transcoder", "aligned": "crosscoder"}.get(mode, "topk")
    kind = overrides.get("sae.kind", raw.get("sae", {}).get("kind", usual))
    given = {"sae.kind": kind, **overrides}
    if kind in {"transcoder", "crosscoder"}:
        given = {path.replace("sae.", "sae.inner.") if path in OF_LATENTS else path: v for path, v in given.items()}
        given.setdefault("sae.inner.kind", raw.get("sae", {}).get("inner", {}).get("kind", "topk"))
    return raw, given


def load_sweep(path: str, store: str | None) -> SweepSpec:
    """A SweepSpec from YAML; `store` overrides the base's."""
    from schemas.train import SweepSpec

    raw = _yaml(path)
    if store is not None:
        raw.setdefault("base", {})["store"] = store
    made: SweepSpec = validated(SweepSpec, raw, path)
    return made


def validated(schema: Any, raw: dict[str, Any], where: str) -> Any:
    """The schema's instance, or a SpecError in sentences, with the nearest key for an unknown one."""
    from pydantic import ValidationError

    from actstore.boundary import sentences
    from actstore.errors import SpecError

    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        unknown = [str(e["loc"][-1]) for e in error.errors() if e["type"] == "extra_forbidden"]
        near = [hint for key in unknown for hint in difflib.get_close_matches(key, _keys(schema), 1, 0.5)]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise SpecError(f"{where}: {sentences(error)}{hint}") from error


def _yaml(path: str) -> dict[str, Any]:
    import yaml

    from actstore.errors import SpecError
    from actstore.format.storage import Storage

    folder, _, name = path.rpartition("/")
    text = Storage(folder or ("/" if path.startswith("/") else ".")).read(name)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: wanted keys and values, got {type(raw).__name__}")
    return raw


def _keys(schema: Any) -> list[str]:
    """Field names of a schema and of the schemas inside it."""
    properties: dict[str, None] = {}
    description = schema.model_json_schema()
    for part in [description, *description.get("$defs", {}).values()]:
        properties.update(dict.fromkeys(part.get("properties", {})))
    return list(properties)
