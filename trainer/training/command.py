"""`trainer train` and `trainer sweep`. Importing this loads typer only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.distributed.launch import say, under_torchrun
from trainer.training import options
from trainer.training.specs import from_options, load_spec, load_sweep

if TYPE_CHECKING:
    from schemas.train import TrainSpec
    from trainer.distributed.start import Together
    from trainer.training.loop import OnCorrupt, Progress, Report


def train_command(
    *,
    spec: options.Spec = None,
    sae: options.SaeKind = None,
    inner: options.Inner = None,
    expansion: options.Expansion = None,
    init: options.Init = None,
    seed: options.Seed = None,
    k: options.K = None,
    target_l0: options.TargetL0 = None,
    l1: options.L1 = None,
    l0: options.L0 = None,
    alpha: options.Alpha = None,
    store: options.Store = None,
    sites: options.Sites = None,
    pairs_with: options.PairsWith = None,
    aligned: options.Aligned = False,
    follow: options.Follow = False,
    rescale: options.Rescale = None,
    center: options.Center = None,
    rows: options.Rows = None,
    batch: options.Batch = None,
    on_corrupt: options.Corrupt = "error",
    lr: options.Lr = None,
    warmup: options.Warmup = None,
    dead_rows: options.DeadRows = None,
    precision: options.Precision = None,
    out: options.Out,
    name: options.Name = None,
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = None,
    checkpoint_minutes: options.CheckpointMinutes = None,
    log_every: options.LogEvery = None,
    tensorboard: options.TensorBoard = False,
    wandb: options.Wandb = None,
    device: options.Device = "cpu",
    shard_dictionary: options.Shard = False,
) -> None:
    """Train one SAE on the mixture of a store's sites (or on some of them)."""
    given = {field: value for field, value in locals().items() if field in options.FIELDS}
    with under_torchrun(device, shard_dictionary) as together:
        made = load_spec(spec, from_options(given, aligned))
        run_groups([{out: made}], device, resume, tensorboard, wandb, on_corrupt, together)
    say(f"run: {out}")


def sweep_command(
    sweep: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file with a SweepSpec: base, and grid or runs.")],
    *,
    store: options.Store = None,
    on_corrupt: options.Corrupt = "error",
    out: options.OutFolder,
    resume: options.Resume = False,
    tensorboard: options.TensorBoard = False,
    wandb: options.Wandb = None,
    device: options.Device = "cpu",
    memory: options.Memory = None,
    shard_dictionary: options.Shard = False,
) -> None:
    """Train many SAEs; those that can share a stream, and fit into memory together, share one pass over the data."""
    from trainer.training.sweep import expand

    with under_torchrun(device, shard_dictionary) as together:
        made = expand(load_sweep(sweep, store), sweep)
        specs = {f"{out.rstrip('/')}/{name}": spec for name, spec in made.items()}
        lead = together is None or together.world.lead
        limit = _limit(memory, device, together)
        parts = [list(part) for part in _plan(specs, limit, device, resume)] if lead else []
        if together is not None:  # the lead's view of folders is that of all
            parts = together.world.shared(parts)
        of_specs = [{url: specs[url] for url in part} for part in parts]
        run_groups(of_specs, device, resume, tensorboard, wandb, on_corrupt, together)
    for url in specs:
        say(f"run: {url}")


def _limit(memory: str | None, device: str, together: Together | None) -> int:
    """Bytes that one pass may take of a device: of several processes, what the one with least room has."""
    from actstore.harvesting.specs import parse_size
    from trainer.training.memory import usable_memory

    if memory is not None:
        return parse_size(memory)
    if together is None:
        return usable_memory(device)
    here = usable_memory(str(together.world.device))
    if together.world.device.type == "cpu":  # which the processes of a machine share
        here //= int(os.environ.get("LOCAL_WORLD_SIZE", together.world.size))
    return int(together.world.least(here))


def _plan(specs: dict[str, TrainSpec], limit: int, device: str, resume: bool) -> list[dict[str, TrainSpec]]:
    """Groups of the runs that are left, and what each takes of memory, printed. Looks at all run folders first."""
    from actstore.store import open as open_store
    from trainer.training.loop import prepare
    from trainer.training.memory import fitting
    from trainer.training.sweep import groups

    storages = {url: prepare(url, spec, resume) for url, spec in specs.items()}
    left = {url: spec for url, spec in specs.items() if not storages[url].exists("sae.json")}
    found = []
    for sharing in groups(left):
        first = next(iter(sharing.values()))
        found += fitting(open_store(first.store, follow=first.stream.follow), sharing, limit, device)
    passes = f"{len(found)} pass{'' if len(found) == 1 else 'es'} over the data"
    done = f", {len(specs) - len(left)} more have ended" if len(left) < len(specs) else ""
    typer.echo(f"{len(left)} SAEs in {passes}{done}; {limit / 1e9:.2g} GB may be taken", err=True)
    for i, group in enumerate(found):
        more = "; more than may be taken" if group.memory.total > limit else ""
        typer.echo(f"pass {i + 1}: {len(group.specs)} SAEs, about {group.memory}{more}", err=True)
    return [group.specs for group in found]


def run_groups(
    parts: list[dict[str, TrainSpec]],
    device: str,
    resume: bool,
    tensorboard: bool = False,
    wandb: str | None = None,
    on_corrupt: str = "error",
    together: Together | None = None,
) -> None:
    """Train groups one after the other, with a progress bar; `together` with other processes that do the same."""
    from rich.console import Console

    from actstore.allocator import keep_freed_memory
    from actstore.store import open as open_store
    from trainer.training.loop import train_group
    from trainer.training.notes import notes_on
    from trainer.training.sinks import sinks_for

    corrupt = _on_corrupt(on_corrupt)
    keep_freed_memory()
    lead = together is None or together.world.lead
    sinks = sinks_for([url for group in parts for url in group], tensorboard, wandb) if lead else None
    console, silent = Console(stderr=True), Console(stderr=True, quiet=True)
    for group in parts:
        spec = next(iter(group.values()))
        with notes_on(console), _bar(console if lead else silent) as report:
            opened = open_store(spec.store, follow=spec.stream.follow)
            train_group(
                opened,
                group,
                device=device,
                on_corrupt=corrupt,
                resume=resume,
                report=report,
                sinks=sinks,
                together=together,
            )


def _on_corrupt(word: str) -> OnCorrupt:
    from actstore.errors import SpecError

    if word == "error":
        return "error"
    if word == "skip":
        return "skip"
    raise SpecError(f"--on-corrupt {word}: wanted error or skip")


@contextmanager
def _bar(console: Any) -> Iterator[Report]:
    from rich import progress as rich_progress
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bar:
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
