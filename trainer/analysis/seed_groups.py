"""Reads runs, and groups those that are the same but for the seed.

What was trained is told by `sae.json`; how, by `spec.json`, which imported runs lack.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from actstore.figures.layer_order import short_site
from actstore.format.storage import Storage
from schemas.records import RunRecord
from schemas.sae import inner_of
from schemas.train import TrainSpec
from trainer.errors import RunError
from trainer.runs.run_data import RunData, read_run, read_spec

Setting = str | int | float | bool | None
# Fields of a TrainSpec that make another SAE, beside those that the record has.
_FIELDS_OF_SPEC = ("init", "center_init", "resample", "accumulate", "precision")
_FIELDS_OF_OPTIMISER_IN_RECORD = ("lr", "lr_factor")
_LONGEST_SITES = 2  # more sites than these are counted and not named


class Run(Protocol):
    """A run, as far as groups need it: a `RunData` or a `TrainedSae`."""

    @property
    def url(self) -> str:
        """Its folder."""

    @property
    def record(self) -> RunRecord:
        """The record of the SAE and of the data it was trained on."""


AnyRun = TypeVar("AnyRun", bound=Run)


class Sparsity(NamedTuple):
    """The setting that decides how many latents fire.

    Attributes:
        name: Which setting: `k`, `target_l0`, or that of a penalty; empty for none.
        value: Its value; NaN where the kind has none.
    """

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:g}" if self.name else "none"


class SeedGroup(NamedTuple, Generic[AnyRun]):
    """Runs that are the same but for the seed, or for what else was asked.

    Attributes:
        name: What tells it from the other groups: `nsae, lr 0.003`.
        runs: Its runs, in the order they were given in.
        settings: What all its runs were trained with, by dotted path.
    """

    name: str
    runs: tuple[AnyRun, ...]
    settings: Mapping[str, Setting]


Group = SeedGroup[RunData]


def read_runs(urls: Sequence[str]) -> list[RunData]:
    """Read evaluated runs, and give each a name of its own.

    Runs whose names are the same are told apart by their folders' paths.

    Raises:
        RunError: There is none, one is given twice, or one has not been evaluated.
    """
    if not urls:
        raise RunError("which runs? give at least one run folder")
    places = [url.rstrip("/") for url in urls]
    twice = [url for url in dict.fromkeys(places) if places.count(url) > 1]
    if twice:
        raise RunError(f"{twice[0]}: this run is given twice; give each run once")
    return with_own_names([read_run(url) for url in places])


def with_own_names(runs: Sequence[RunData]) -> list[RunData]:
    """Return the runs so that no two have one name."""
    names = [run.name for run in runs]
    is_shared = [names.count(name) > 1 for name in names]
    renamed = []
    for run, shared in zip(runs, is_shared, strict=True):
        name = _path_from_common(run, runs) if shared else run.name
        renamed.append(run._replace(name=name))
    return renamed


def spec_of(run: Run) -> TrainSpec | None:
    """Return what was asked of training; None for a run without `spec.json`."""
    # A RunData has it: groups are formed again and again, and storage may be far away.
    if isinstance(run, RunData):
        return run.spec
    return read_spec(Storage(run.url))


def settings_of(run: Run) -> dict[str, Setting]:
    """Return all that a run was trained with but its seeds, by dotted path."""
    record = run.record
    settings: dict[str, Setting] = {"kind": kind_of_run(run)}
    settings |= _flat("sae", record.sae.model_dump(mode="json"))
    # The dictionary's size is told once, however it was asked for.
    for name in ("kind", "expansion", "n_latents"):
        settings.pop(f"sae.{name}", None)
        settings.pop(f"sae.inner.{name}", None)
    settings |= {
        "n_latents": record.n_latents,
        "sites": ", ".join(record.sites),
        "targets": ", ".join(record.targets),
        "rescale": record.rescale,
        "center": record.center,
        "lr": None if record.lr is None else float(f"{record.lr:.6g}"),
        "rows": record.rows,
        "ema": record.ema,
        "content_id": record.content_id,
    }
    if record.filter is not None:
        settings |= _flat("filter", record.filter.model_dump(mode="json"))
    spec = spec_of(run)
    if spec is None:
        return settings
    asked = spec.model_dump(mode="json")
    for name in _FIELDS_OF_SPEC:
        settings |= _flat(name, asked[name])
    for name, value in asked["optimiser"].items():
        if name not in _FIELDS_OF_OPTIMISER_IN_RECORD:
            settings |= _flat(f"optimiser.{name}", value)
    settings["batch"] = spec.stream.batch
    return settings


def sparsity_settings(run: Run) -> tuple[str, ...]:
    """Return the settings that set how many latents fire: `sae.k`, `sae.target_l0`."""
    sae = run.record.sae
    prefix = "sae.inner" if hasattr(sae, "inner") else "sae"
    return tuple(f"{prefix}.{name}" for name in inner_of(sae).sparsity_fields())


def sparsity_setting(run: Run) -> Sparsity:
    """Return the setting that decides a run's sparsity."""
    inner = inner_of(run.record.sae)
    if inner.latents_per_row is not None:
        return Sparsity("k", float(inner.latents_per_row))
    if inner.steered_l0 is not None:
        return Sparsity("target_l0", float(inner.steered_l0))
    if inner.penalty_weight is not None:
        return Sparsity(inner.penalty_field or "penalty", float(inner.penalty_weight))
    return Sparsity("", math.nan)


def sparsity_of(run: Run) -> float:
    """Return the L0 that was asked for, or the penalty where that was given."""
    return sparsity_setting(run).value


def kind_of_run(run: Run) -> str:
    """Return the kind of a run: `topk`, or `crosscoder of topk`."""
    sae = run.record.sae
    inner = inner_of(sae)
    if inner is sae:
        return str(sae.kind)
    return f"{sae.kind} of {inner.kind}"


def group_runs(
    runs: Sequence[AnyRun], but_for: Collection[str] = (), sparsity: bool = True
) -> list[SeedGroup[AnyRun]]:
    """Return runs grouped by all that they were trained with but the seed.

    Args:
        runs: The runs.
        but_for: Settings that may differ within a group, too: `sites`, `lr`.
        sparsity: False: so may the sparsity, and each group is a front.

    Returns:
        The groups, in the order of their first runs.
    """
    found: dict[tuple[tuple[str, Setting], ...], list[AnyRun]] = {}
    for run in runs:
        left_out = set(but_for)
        if not sparsity:
            left_out |= set(sparsity_settings(run))
        settings = settings_of(run)
        key = tuple(item for item in settings.items() if item[0] not in left_out)
        found.setdefault(key, []).append(run)
    every = [dict(key) for key in found]
    names = _names(every)
    return [
        SeedGroup(name, tuple(group), settings)
        for name, group, settings in zip(names, found.values(), every, strict=True)
    ]


def groups_over_layers(
    runs: Sequence[AnyRun], *, sparsity: bool = True
) -> list[SeedGroup[AnyRun]]:
    """Return groups in which runs of one layer each are together over layers.

    A dictionary for each layer is compared with one for all that way. Arguments are
    those of `group_runs`.
    """
    is_of_one = all(len(run.record.sites) == 1 for run in runs)
    but_for = ("sites", "targets") if is_of_one else ()
    return group_runs(runs, but_for, sparsity)


def names_of_groups(groups: Sequence[SeedGroup[AnyRun]]) -> dict[str, str]:
    """Return the name of each run's group, by the run's URL."""
    return {run.url: group.name for group in groups for run in group.runs}


def _names(every: Sequence[Mapping[str, Setting]]) -> list[str]:
    """Return a name for each group of settings, from what tells it from the others.

    A setting is named where it differs among groups of one kind: what differs between
    kinds is told by the kind.
    """
    named: list[str] = []
    for settings in every:
        of_kind = [other for other in every if other["kind"] == settings["kind"]]
        parts = [str(settings["kind"])]
        for path, value in settings.items():
            if any(other.get(path) != value for other in of_kind):
                parts.append(_shown(path, value))
        if len(parts) == 1:
            parts += _without(settings, of_kind)
        named.append(", ".join(parts))
    # The kind is left out where all have the same and something else tells them apart.
    kinds = {settings["kind"] for settings in every}
    if len(kinds) == 1 and len(every) > 1:
        named = [name.partition(", ")[2] for name in named]
    return named


def _without(
    settings: Mapping[str, Setting], others: Sequence[Mapping[str, Setting]]
) -> list[str]:
    """Return what only others have, where nothing else tells a group from them.

    Runs without resampling beside runs with `resample.every` are `no resample`.
    """
    missing = [path for other in others for path in other if path not in settings]
    return [f"no {path.partition('.')[0]}" for path in missing[:1]]


def _shown(path: str, value: Setting) -> str:
    """Return a setting as it stands in a name."""
    if path in {"sites", "targets"}:
        sites = str(value).split(", ")
        if len(sites) > _LONGEST_SITES:
            return f"{len(sites)} {path}, {short_site(sites[0])} first"
        return ", ".join(short_site(site) for site in sites)
    if path == "content_id":
        return f"store {str(value)[:8]}"
    label = path.rpartition(".")[2]
    if value is None:
        return f"no {label}"
    if isinstance(value, float):
        return f"{label} {value:.3g}"
    return f"{label} {value}"


def _flat(prefix: str, value: Any) -> dict[str, Setting]:
    """Return the scalars of a JSON value by dotted path."""
    if isinstance(value, dict):
        flat: dict[str, Setting] = {}
        for key, inner in value.items():
            flat |= _flat(f"{prefix}.{key}", inner)
        return flat
    if isinstance(value, list):
        return {prefix: ", ".join(str(one) for one in value)}
    return {prefix: value}


def _path_from_common(run: RunData, runs: Sequence[RunData]) -> str:
    """Return a run's path below the folder that all runs lie in."""
    every = [other.url.split("/") for other in runs]
    parts = run.url.split("/")
    n_common = 0
    shortest = min(len(path) for path in every)
    while n_common < shortest - 1 and len({path[n_common] for path in every}) == 1:
        n_common += 1
    return "/".join(parts[n_common:])
