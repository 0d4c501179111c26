"""TrainSpecs and SweepSpecs from YAML files and options: one clear error for what is
wrong in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actstore.console.cli_options import option
from trainer.training.train_options import FIELDS

if TYPE_CHECKING:
    from schemas.train import SweepSpec, TrainSpec

OPTIONS = {path: option(name) for name, path in FIELDS.items()}
# of `inner`, where it is
OF_LATENTS = {
    f"sae.{name}" for name in ("expansion", "k", "target_l0", "l1", "l0", "alpha")
}
WEIGHTS, TARGET = ("sae.l1", "sae.l0", "sae.alpha"), "sae.target_l0"
USUAL_KIND = {"pairs": "transcoder", "aligned": "crosscoder"}  # by the stream's mode


def from_options(given: Mapping[str, Any], aligned: bool = False) -> dict[str, Any]:
    """Dotted paths into a TrainSpec, of the options that were given (see `FIELDS`).
    Raises SpecError where two of them exclude each other.
    """
    from actstore.errors import SpecError

    found = {
        FIELDS[name]: value for name, value in given.items() if _is_given(name, value)
    }
    rivals = [OPTIONS[path] for path in (*WEIGHTS, TARGET) if path in found]
    if len(rivals) > 1:
        raise SpecError(
            f"{' and '.join(rivals)} exclude each other: give the mean L0 that the"
            " penalty is steered to (--target-l0), or the penalty's weight (--l1, --l0"
            " or --alpha, by kind)"
        )
    if aligned and "stream.targets" in found:
        raise SpecError(
            "--aligned and --pairs-with exclude each other: rows for a crosscoder, or"
            " for a transcoder"
        )
    if aligned or "stream.targets" in found:
        found["stream.mode"] = "aligned" if aligned else "pairs"
    if "seed" in found:
        found["stream.seed"] = found["seed"]
    return found


def _is_given(name: str, value: Any) -> bool:
    if value is None or value == []:
        return False
    return value is not False or name == "center"  # the one flag with an opposite


def load_spec(path: str | None, given: Mapping[str, Any]) -> TrainSpec:
    """A TrainSpec from a YAML file and values at dotted paths, which override it.

    Raises SpecError that names the file or the option, and for an unknown key the
    nearest one.
    """
    from actstore.errors import SpecError
    from actstore.validation import validated
    from schemas.train import TrainSpec
    from trainer.training.sweep import with_values

    where = path or "the options"
    raw = _yaml(path) if path else {}
    if path and "store" not in given:
        raw |= _store_of_run(path)
    raw["sae"], raw["stream"] = (
        dict(_section(raw, name, where)) for name in ("sae", "stream")
    )
    placed, names = _placed(raw, given)
    values = with_values(raw, placed, where)
    if "store" not in values:
        raise SpecError("which store? give --store URL, or `store:` in the YAML file")
    return validated(TrainSpec, values, where, names)


def _store_of_run(path: str) -> dict[str, str]:
    """`store` of a run's own spec.json: where the run's store lies now, and no other."""
    from actstore.format.storage import Storage

    folder, _, name = path.rpartition("/")
    storage = Storage(folder or ("/" if path.startswith("/") else "."))
    if name != "spec.json" or not storage.exists("spec.json"):
        return {}
    from trainer.runs.run_store import absolute, found, read_origin

    origin = read_origin(storage)
    return {} if origin is None else {"store": absolute(found(storage.url, origin).url)}


def _placed(
    raw: dict[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is given at its dotted paths, and the options it is from.

    With the kind of SAE settled (what the stream's mode calls for, else topk), and what
    is of the latents put where a transcoder or crosscoder has them.
    """
    sae = raw["sae"]
    mode = given.get("stream.mode", raw["stream"].get("mode"))
    kind = given.get("sae.kind", sae.get("kind", USUAL_KIND.get(mode, "topk")))
    paths = {path: path for path in given}
    settled = {"sae.kind": kind}
    if kind in USUAL_KIND.values():
        paths |= {
            path: path.replace("sae.", "sae.inner.")
            for path in given
            if path in OF_LATENTS
        }
        sae["inner"] = sae = dict(_section(sae, "inner", "sae"))
        settled["sae.inner.kind"] = sae.get("kind", "topk")
    # an option replaces what the file says of the same
    if any(path in given for path in (*WEIGHTS, TARGET)):
        for path in (*WEIGHTS, TARGET):
            sae.pop(path.removeprefix("sae."), None)
    if "sae.expansion" in given:
        sae.pop("n_latents", None)
    placed = {**settled, **{paths[path]: value for path, value in given.items()}}
    return placed, {paths[path]: OPTIONS[path] for path in given if path in OPTIONS}


def load_sweep(path: str, store: str | None) -> SweepSpec:
    """A SweepSpec from YAML; `store` overrides the base's. Raises SpecError."""
    from actstore.validation import validated
    from schemas.train import SweepSpec

    raw = _yaml(path)
    if store is not None:
        raw["base"] = {**_section(raw, "base", path), "store": store}
    return validated(SweepSpec, raw, path)


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """The keys under a key; none where it is not there. Raises SpecError where it is a
    value.
    """
    from actstore.errors import SpecError

    found = raw.get(name, {})
    if not isinstance(found, Mapping):
        raise SpecError(f"{where}: {name}: wanted keys and values, got {found!r}")
    return found


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
    if raw is None:
        raise SpecError(
            f"{path}: it is empty; wanted keys and values, such as `store: URL`, or in"
            " a sweep `base:`"
        )
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: wanted keys and values, got {type(raw).__name__}")
    return raw
