"""Sweeps: specs from YAML, grouped by the stream they can share."""

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
    """Name -> spec of every run. A name lists what varies, and is that of a folder:
    `k=32,rescale=log`; `base` is that of a run of which nothing does.

    `where` the sweep is from, for errors. Raises SpecError, or SaeError for two runs
    that are the same.
    """
    rows: list[dict[str, Any]] = sweep.runs or [
        dict(zip(sweep.grid, values, strict=True))
        for values in itertools.product(*sweep.grid.values())
    ]
    runs = {_name(row): row for row in rows}
    if len(runs) != len(rows):
        raise SaeError(
            "two runs of the sweep are the same; every run must differ in at least one"
            " field"
        )
    return {
        name: _run(sweep.base, row, name, f"{where}, run {name}")
        for name, row in runs.items()
    }


def _name(row: dict[str, Any]) -> str:
    return (
        ",".join(
            f"{path.split('.')[-1]}={_shown(value)}" for path, value in row.items()
        )
        or "base"
    )


def _run(base: dict[str, Any], row: dict[str, Any], name: str, where: str) -> TrainSpec:
    values = with_values(base, row, where)
    # a name of all of them would tell none apart
    if "name" in base and "name" not in row:
        values["name"] = f"{base['name']} {name}"
    return validated(TrainSpec, values, where)


def groups(specs: dict[str, TrainSpec]) -> list[dict[str, TrainSpec]]:
    """Runs that share a stream (all of its spec but rescaling and length), a logging
    and a checkpoint interval, in the order they came.
    """
    out: dict[str, dict[str, TrainSpec]] = {}
    for name, spec in specs.items():
        key = (
            f"{spec.store} {shared_stream(spec).to_json()} {spec.log_every}"
            f" {spec.checkpoint_every}"
        )
        out.setdefault(key, {})[name] = spec
    return list(out.values())


def with_values(
    base: dict[str, Any], row: dict[str, Any], where: str = "the spec"
) -> dict[str, Any]:
    """A copy of nested keys with values put at dotted paths. Raises SpecError where a
    path leads through a value.
    """
    made: dict[str, Any] = _copy(base)
    for path, value in row.items():
        *parents, last = path.split(".")
        place = made
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise SpecError(
                    f"{where}: {path}: {name} is {place!r} there, and not keys and"
                    " values"
                )
        place[last] = value
    return made


def _shown(value: Any) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, dict):
        return "+".join(f"{key}-{_shown(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return "+".join(map(_shown, value))
    return re.sub(r"[^\w.{}*-]", "_", str(value))


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
