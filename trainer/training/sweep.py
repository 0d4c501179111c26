"""Expands a sweep into the specs of its runs, and groups those that share a stream."""

from __future__ import annotations

import itertools
import re
from typing import Any

from actstore.errors import SpecError
from actstore.validation import validated
from schemas.train import SweepSpec, TrainSpec
from trainer.errors import SaeError
from trainer.training.run_stream import shared_stream


def expand(sweep: SweepSpec, where: str = "the sweep") -> dict[str, TrainSpec]:
    """Return the spec of every run of a sweep by its name.

    A name lists what varies, and is that of a folder: `k=32,rescale=log`. A run of
    which nothing varies is called `base`.

    Args:
        sweep: The sweep.
        where: Where it is from, for messages.

    Raises:
        SpecError: The spec of a run is not valid.
        SaeError: Two of the runs are the same.
    """
    all_values: list[dict[str, Any]] = sweep.runs
    if not all_values:
        combinations = itertools.product(*sweep.grid.values())
        all_values = [
            dict(zip(sweep.grid, values, strict=True)) for values in combinations
        ]
    by_name = {_name(values): values for values in all_values}
    if len(by_name) != len(all_values):
        raise SaeError(
            "two runs of the sweep are the same; every run must differ in at least one"
            " field"
        )
    return {
        name: _run_spec(sweep.base, values, name, f"{where}, run {name}")
        for name, values in by_name.items()
    }


def _name(values: dict[str, Any]) -> str:
    parts = [
        f"{path.split('.')[-1]}={_as_name(value)}" for path, value in values.items()
    ]
    return ",".join(parts) or "base"


def _run_spec(
    base: dict[str, Any],
    values: dict[str, Any],
    name: str,
    where: str,
) -> TrainSpec:
    keys = with_values(base, values, where)
    # A name that all runs have in common would not tell them apart.
    if "name" in base and "name" not in values:
        keys["name"] = f"{base['name']} {name}"
    return validated(TrainSpec, keys, where)


def groups(specs: dict[str, TrainSpec]) -> list[dict[str, TrainSpec]]:
    """Divide runs into groups that can share a stream, in the order they came.

    They agree on all of the stream's spec but its rescaling and length, on how often
    they are logged, and on how often they are saved.
    """
    by_key: dict[str, dict[str, TrainSpec]] = {}
    for name, spec in specs.items():
        by_key.setdefault(sharing_key(spec), {})[name] = spec
    return list(by_key.values())


def sharing_key(spec: TrainSpec) -> str:
    """Return what is equal of runs that can share a stream."""
    return (
        f"{spec.store} {shared_stream(spec).to_json()} {spec.log_every}"
        f" {spec.checkpoint_every}"
    )


def with_values(
    base: dict[str, Any],
    values: dict[str, Any],
    where: str = "the spec",
) -> dict[str, Any]:
    """Return a copy of nested keys with values put at dotted paths.

    Args:
        base: Nested keys and values.
        values: Values by dotted path, such as {"sae.k": 32}.
        where: Where they are from, for messages.

    Raises:
        SpecError: A path leads through a single value.
    """
    copied: dict[str, Any] = _copy(base)
    for path, value in values.items():
        *parents, last = path.split(".")
        level = copied
        for name in parents:
            level = level.setdefault(name, {})
            if not isinstance(level, dict):
                raise SpecError(
                    f"{where}: {path}: {name} is {level!r} there, and not keys and"
                    " values"
                )
        level[last] = value
    return copied


def _as_name(value: Any) -> str:
    """Return a value as a part of a folder's name."""
    if isinstance(value, dict):
        return "+".join(f"{key}-{_as_name(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "+".join(map(_as_name, value))
    return re.sub(r"[^\w.{}*-]", "_", str(value))


def _copy(value: Any) -> Any:
    """Return nested keys and values whose dicts are new; other values are shared."""
    if not isinstance(value, dict):
        return value
    return {key: _copy(inner) for key, inner in value.items()}
