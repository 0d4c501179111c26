"""Reads TrainSpecs and SweepSpecs from YAML files, options, and nested keys and values.

What is wrong in them gives one clear error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from actstore.console.cli_options import option
from trainer.training.train_options import FIELDS

if TYPE_CHECKING:
    from schemas.train import SweepSpec, TrainSpec

# The option that stands for a field, by the field's dotted path.
OPTIONS = {path: option(name) for name, path in FIELDS.items()}
# Fields of the latents. In a transcoder or crosscoder they belong to its `inner`.
OF_LATENTS = {
    f"sae.{name}" for name in ("expansion", "k", "target_l0", "l1", "l0", "alpha")
}
# Options that set the sparsity of a penalised kind: the weight, or the wanted L0.
SPARSITY = ("sae.l1", "sae.l0", "sae.alpha", "sae.target_l0")
USUAL_KIND = "topk"


def from_options(given: Mapping[str, Any], aligned: bool = False) -> dict[str, Any]:
    """Return the options that were given as values at dotted paths into a TrainSpec.

    Args:
        given: Every option by the name of its parameter (see `FIELDS`).
        aligned: Whether --aligned was given.

    Raises:
        SpecError: Two of them exclude each other.
    """
    from actstore.errors import SpecError

    values = {}
    for name, value in given.items():
        if _is_given(name, value):
            values[FIELDS[name]] = value
    rivals = [OPTIONS[path] for path in SPARSITY if path in values]
    if len(rivals) > 1:
        raise SpecError(
            f"{' and '.join(rivals)} exclude each other: give the mean L0 that the"
            " penalty is steered to (--target-l0), or the penalty's weight (--l1, --l0"
            " or --alpha, by kind)"
        )
    has_targets = "stream.targets" in values
    if aligned and has_targets:
        raise SpecError(
            "--aligned and --pairs-with exclude each other: rows for a crosscoder, or"
            " for a transcoder"
        )
    if aligned:
        values["stream.mode"] = "aligned"
    elif has_targets:
        values["stream.mode"] = "pairs"
    if "seed" in values:
        values["stream.seed"] = values["seed"]
    return values


def _is_given(name: str, value: Any) -> bool:
    if value is None or value == []:
        return False
    # A flag that is off was not given, but for the one flag that has an opposite.
    return value is not False or name == "center"


def load_spec(
    source: TrainSpec | Mapping[str, Any] | str | os.PathLike[str] | None,
    given: Mapping[str, Any] | None = None,
) -> TrainSpec:
    """Return a TrainSpec.

    Args:
        source: The spec, or the keys and values of one, or a YAML file of them. None:
            only `given` says what to train.
        given: Values at dotted paths, which override those of the source.

    Raises:
        SpecError: It is not valid. The message names the file or the option, and for an
            unknown key the nearest one.
    """
    from actstore.errors import SpecError
    from actstore.validation import validated
    from schemas.train import TrainSpec
    from trainer.training.sweep import with_values

    given = given or {}
    if isinstance(source, TrainSpec):
        if not given:
            return source
        source = source.model_dump()
    where = "the options"
    if source is not None:
        where = source_name(source, "the spec", "a TrainSpec")
    if source is None:
        raw: dict[str, Any] = {}
    elif isinstance(source, Mapping):
        raw = dict(source)
    else:
        raw = _yaml(where)
        if "store" not in given:
            raw |= _store_of_run(where)
    _check_not_a_sweep(raw, where)
    for name in ("sae", "stream"):
        raw[name] = dict(_section(raw, name, where))
    placed = _placed(raw, given)
    values = with_values(raw, placed.values, where)
    if "store" not in values:
        raise SpecError("which store? give --store URL, or `store:` in the YAML file")
    return validated(TrainSpec, values, where, placed.options)


def source_name(source: object, spec_name: str, wanted: str) -> str:
    """Return what errors call keys and values: their file, or the name that is given.

    Raises:
        SpecError: The source is neither keys and values nor a file's path.
    """
    from actstore.errors import SpecError

    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if isinstance(path, str) and path.strip():
            return path
    elif isinstance(source, Mapping):
        return spec_name
    raise SpecError(
        f"{spec_name}: wanted {wanted}, a dict of its fields, or the path of a YAML"
        f" file, got {type(source).__name__}"
    )


def _check_not_a_sweep(raw: Mapping[str, Any], where: str) -> None:
    from actstore.errors import SpecError

    if "base" in raw and ("grid" in raw or "runs" in raw):
        raise SpecError(
            f"{where}: these are the keys of a sweep (`base`, ...), and `train` trains"
            " one SAE; give them to `sweep`"
        )


def _store_of_run(path: str) -> dict[str, str]:
    """Return the store of a run whose own spec.json is the file.

    That is where the store lies now, which may be another place than the file says.
    Empty for any other file.
    """
    from actstore.format.absolute_url import absolute
    from trainer.runs.run_store import find_store, read_origin

    storage, name = _storage_and_name(path)
    if name != "spec.json" or not storage.exists("spec.json"):
        return {}
    origin = read_origin(storage)
    if origin is None:
        return {}
    return {"store": absolute(find_store(storage.url, origin).url)}


class _Placed(NamedTuple):
    """Values that were given, where they belong in the spec.

    Attributes:
        values: Values by dotted path.
        options: The options that they are from, by dotted path.
    """

    values: dict[str, Any]
    options: dict[str, str]


def _placed(raw: dict[str, Any], given: Mapping[str, Any]) -> _Placed:
    """Settle the kind of SAE, and put what belongs to its latents where it has them.

    The kind is the one that is given, else the one that the stream's mode calls for,
    else topk. What the source says of the same as an option is removed from `raw`.
    """
    # Loads torch, which `--help` does without.
    from trainer.saes.build import find, kind_trained_on

    sae = raw["sae"]
    mode = given.get("stream.mode", raw["stream"].get("mode"))
    # A file may hold anything here; what is not a name is refused with all the rest.
    called_for = kind_trained_on(str(mode))
    usual = USUAL_KIND if called_for is None else called_for.name
    kind = given.get("sae.kind", sae.get("kind", usual))
    known_kind = find(str(kind))
    paths = {path: path for path in given}
    values = {"sae.kind": kind}
    if known_kind is not None and known_kind.has_inner:
        for path in given:
            if path in OF_LATENTS:
                paths[path] = path.replace("sae.", "sae.inner.")
        inner = dict(_section(sae, "inner", "sae"))
        sae["inner"] = inner
        sae = inner
        values["sae.inner.kind"] = inner.get("kind", USUAL_KIND)
    if any(path in given for path in SPARSITY):
        for path in SPARSITY:
            sae.pop(path.removeprefix("sae."), None)
    if "sae.expansion" in given:
        sae.pop("n_latents", None)
    for path, value in given.items():
        values[paths[path]] = value
    options = {paths[path]: OPTIONS[path] for path in given if path in OPTIONS}
    return _Placed(values, options)


def load_sweep(
    source: SweepSpec | Mapping[str, Any] | str | os.PathLike[str],
    store: str | None = None,
) -> SweepSpec:
    """Return a SweepSpec.

    Args:
        source: The spec, or the keys and values of one, or a YAML file of them.
        store: The store to train from, in the place of the base's.

    Raises:
        SpecError: It is not valid.
    """
    from actstore.validation import validated
    from schemas.train import SweepSpec

    if isinstance(source, SweepSpec):
        source = source.model_dump()
    where = source_name(source, "the sweep", "a SweepSpec")
    raw = dict(source) if isinstance(source, Mapping) else _yaml(where)
    if store is not None:
        raw["base"] = {**_section(raw, "base", where), "store": store}
    return validated(SweepSpec, raw, where)


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """Return what is under a key; nothing where the key is not there.

    Raises SpecError where a single value is there.
    """
    from actstore.errors import SpecError

    section = raw.get(name, {})
    if hasattr(section, "model_dump"):  # a spec among keys and values
        section = section.model_dump()
    if not isinstance(section, Mapping):
        raise SpecError(f"{where}: {name}: wanted keys and values, got {section!r}")
    return section


def _yaml(path: str) -> dict[str, Any]:
    import yaml

    from actstore.errors import CorruptError, ObjectError, SpecError

    storage, name = _storage_and_name(path)
    try:
        text = storage.read(name)
    except CorruptError:  # a kind of ObjectError, but the file is there
        raise
    except ObjectError:
        folder = storage.local
        if folder is not None and (folder / name).exists():
            raise  # it is no file, which the error says
        raise SpecError(
            f"{path}: there is no such file; wanted a YAML file of a spec"
        ) from None
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


def _storage_and_name(path: str) -> tuple[Any, str]:
    """Return the folder of a file as a Storage, and the file's name in it."""
    from actstore.format.storage import Storage

    folder, _, name = path.rpartition("/")
    if not folder:
        folder = "/" if path.startswith("/") else "."
    return Storage(folder), name
