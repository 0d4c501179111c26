"""`trainer train` and `trainer sweep`. Importing this loads typer only."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from schemas.train import SweepSpec, TrainSpec
    from trainer.training.loop import Progress, Report

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is there, bit by bit.")]


def train_command(
    out: Annotated[str, typer.Option(help="The run's folder: a path or any fsspec URL.")],
    store: Annotated[str | None, typer.Option(help="The store to train from.")] = None,
    spec: Annotated[str | None, typer.Option(help="A YAML file with a TrainSpec; options override it.")] = None,
    sae: Annotated[str | None, typer.Option(help="relu_l1 or topk.")] = None,
    k: Annotated[int | None, typer.Option(help="topk: latents per row.")] = None,
    l1: Annotated[float | None, typer.Option(help="relu_l1: sparsity coefficient.")] = None,
    expansion: Annotated[float | None, typer.Option(help="Dictionary size over d.")] = None,
    sites: Annotated[list[str] | None, typer.Option(help="Names or patterns; all sites if not given.")] = None,
    rescale: Annotated[
        str | None, typer.Option(help="none, sqrt, log, log1p, linear, unit or sqrt_d, from the store's norms.")
    ] = None,
    center: Annotated[bool | None, typer.Option(help="Subtract each site's stored mean.")] = None,
    rows: Annotated[str | None, typer.Option(help="Rows to train on: 500k, 20M; one epoch if not given.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows per batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the initialisation and the order.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, or bfloat16 autocast.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps.")] = None,
    device: Device = "cpu",
    resume: Resume = False,
) -> None:
    """Train one SAE on the mixture of a store's sites (or on some of them)."""
    from actstore.harvesting.specs import parse_count

    given: dict[str, Any] = {
        "store": store,
        "sae.kind": sae,
        "sae.k": k,
        "sae.l1": l1,
        "sae.expansion": expansion,
        "stream.sites": tuple(sites) if sites else None,
        "stream.rescale": rescale,
        "stream.center": center,
        "stream.batch": batch,
        "stream.seed": seed,
        "seed": seed,
        "rows": None if rows is None else parse_count(rows),
        "optimiser.lr": lr,
        "precision": precision,
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
    }
    made = load_spec(spec, {path: value for path, value in given.items() if value is not None})
    run_groups([{out: made}], device, resume)
    typer.echo(f"run: {out}")


def sweep_command(
    sweep: Annotated[str, typer.Argument(help="A YAML file with a SweepSpec: base, and grid or runs.")],
    out: Annotated[str, typer.Option(help="The folder that gets a run folder for each SAE.")],
    store: Annotated[str | None, typer.Option(help="The store to train from, instead of the file's.")] = None,
    device: Device = "cpu",
    resume: Resume = False,
) -> None:
    """Train many SAEs; those that can share a stream are trained in one pass over the data."""
    from trainer.training.sweep import expand, groups

    made = load_sweep(sweep, store)
    specs = {f"{out.rstrip('/')}/{name}": spec for name, spec in expand(made).items()}
    parts = groups(specs)
    typer.echo(f"{len(specs)} SAEs in {len(parts)} pass{'es' if len(parts) > 1 else ''} over the data", err=True)
    run_groups(parts, device, resume)
    for url in specs:
        typer.echo(f"run: {url}")


def load_spec(path: str | None, overrides: dict[str, Any]) -> TrainSpec:
    """A TrainSpec from YAML and dotted overrides. Raises SpecError that names an unknown key and the nearest one."""
    from actstore.errors import SpecError
    from schemas.train import TrainSpec
    from trainer.training.sweep import with_values

    raw = with_values(_yaml(path) if path else {}, overrides)
    if "store" not in raw:
        raise SpecError("which store? give --store URL, or `store:` in the YAML file")
    raw.setdefault("sae", {}).setdefault("kind", "topk")
    made: TrainSpec = validated(TrainSpec, raw, path or "the options")
    return made


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


def run_groups(parts: list[dict[str, TrainSpec]], device: str, resume: bool) -> None:
    """Train groups one after the other, with a progress bar."""
    from actstore.allocator import keep_freed_memory
    from actstore.store import open as open_store
    from trainer.training.loop import train_group

    keep_freed_memory()
    for group in parts:
        opened = open_store(next(iter(group.values())).store)
        with _bar() as report:
            train_group(opened, group, device=device, resume=resume, report=report)


@contextmanager
def _bar() -> Iterator[Report]:
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=None, figures="")

        def report(now: Progress) -> None:
            bar.update(task, completed=now.step, total=now.steps, figures=_figures(now))

        yield report


def _figures(now: Progress) -> str:
    speed = f"{now.rows_per_s:,.0f} rows/s, stall {now.stall:.1%}"
    if len(now.last) != 1:
        return f"{len(now.last)} SAEs, {speed}"
    one = next(iter(now.last.values()))
    return f"loss {one.loss:.4g}, L0 {one.l0:.1f}, FVU {one.fvu:.3f}, dead {one.dead}, {speed}"


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
