"""`trainer train` and `trainer sweep`. Importing this loads typer only."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.distributed.launch import say, under_torchrun
from trainer.training import train_options
from trainer.training.train_spec import from_options, load_spec, load_sweep

if TYPE_CHECKING:
    from rich.console import Console

    from actstore.machine.stop_signals import Stop
    from schemas.train import TrainSpec
    from trainer.distributed.group_start import Together
    from trainer.runs.journal import Sinks
    from trainer.training.final_summary import Ended
    from trainer.training.step_loop import Progress
    from trainer.training.train_group import OnCorrupt


def train_command(
    *,
    spec: train_options.Spec = None,
    sae: train_options.SaeKind = None,
    inner: train_options.Inner = None,
    expansion: train_options.Expansion = None,
    init: train_options.Init = None,
    seed: train_options.Seed = None,
    k: train_options.K = None,
    target_l0: train_options.TargetL0 = None,
    l1: train_options.L1 = None,
    l0: train_options.L0 = None,
    alpha: train_options.Alpha = None,
    store: train_options.Store = None,
    sites: train_options.Sites = None,
    pairs_with: train_options.PairsWith = None,
    aligned: train_options.Aligned = False,
    follow: train_options.Follow = False,
    rescale: train_options.Rescale = None,
    center: train_options.Center = None,
    rows: train_options.Rows = None,
    batch: train_options.Batch = None,
    on_corrupt: train_options.Corrupt = "error",
    lr: train_options.Lr = None,
    warmup: train_options.Warmup = None,
    dead_rows: train_options.DeadRows = None,
    precision: train_options.Precision = None,
    out: train_options.Out,
    name: train_options.Name = None,
    resume: train_options.Resume = False,
    checkpoint_every: train_options.CheckpointEvery = None,
    checkpoint_minutes: train_options.CheckpointMinutes = None,
    log_every: train_options.LogEvery = None,
    tensorboard: train_options.TensorBoard = False,
    wandb: train_options.Wandb = None,
    device: train_options.Device = "cpu",
    shard_dictionary: train_options.Shard = False,
) -> None:
    """Train one SAE on the mixture of a store's sites (or on some of them)."""
    given = {
        field: value
        for field, value in locals().items()
        if field in train_options.FIELDS
    }
    with under_torchrun(device, shard_dictionary) as together:
        made = load_spec(spec, from_options(given, aligned))
        run_groups(
            [{out: made}], device, resume, tensorboard, wandb, on_corrupt, together
        )
    say(f"run: {out}")


def sweep_command(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A YAML file with a SweepSpec: base, and grid or runs."
        ),
    ],
    *,
    store: train_options.Store = None,
    on_corrupt: train_options.Corrupt = "error",
    out: train_options.OutFolder,
    resume: train_options.Resume = False,
    tensorboard: train_options.TensorBoard = False,
    wandb: train_options.Wandb = None,
    device: train_options.Device = "cpu",
    memory: train_options.Memory = None,
    shard_dictionary: train_options.Shard = False,
) -> None:
    """Train many SAEs; those that can share a stream, and fit into memory together,
    share one pass over the data.
    """
    from trainer.training.sweep import expand

    with under_torchrun(device, shard_dictionary) as together:
        made = expand(load_sweep(sweep, store), sweep)
        specs = {f"{out.rstrip('/')}/{name}": spec for name, spec in made.items()}
        lead = together is None or together.world.lead
        limit = _limit(memory, device, together)
        parts = (
            [list(part) for part in _plan(specs, limit, device, resume)] if lead else []
        )
        if together is not None:  # the lead's view of folders is that of all
            parts = together.world.shared(parts)
        of_specs = [{url: specs[url] for url in part} for part in parts]
        run_groups(
            of_specs, device, resume, tensorboard, wandb, on_corrupt, together, out
        )
    for url in specs:
        say(f"run: {url}")


def _limit(memory: str | None, device: str, together: Together | None) -> int:
    """Bytes that one pass may take of a device: of several processes, what the one with
    least room has.
    """
    from actstore.console.counts import parse_size
    from trainer.training.memory_estimate import usable_memory

    if memory is not None:
        return parse_size(memory)
    if together is None:
        return usable_memory(device)
    here = usable_memory(str(together.world.device))
    if together.world.device.type == "cpu":  # which the processes of a machine share
        here //= int(os.environ.get("LOCAL_WORLD_SIZE", together.world.size))
    return int(together.world.least(here))


def _plan(
    specs: dict[str, TrainSpec], limit: int, device: str, resume: bool
) -> list[dict[str, TrainSpec]]:
    """Groups of the runs that are left, and what each takes of memory, printed. Looks
    at all run folders first.
    """
    from actstore.store.open_store import open as open_store
    from trainer.runs.run_store import check_same
    from trainer.training.memory_estimate import fitting
    from trainer.training.sweep import groups
    from trainer.training.train_group import prepare

    storages = {url: prepare(url, spec, resume) for url, spec in specs.items()}
    stores = {
        of: open_store(of[0], follow=of[1])
        for of in dict.fromkeys(map(_store, specs.values()))
    }
    for url, spec in specs.items():
        check_same(storages[url], stores[_store(spec)])
    left = {
        url: spec for url, spec in specs.items() if not storages[url].exists("sae.json")
    }
    found = []
    for sharing in groups(left):
        first = next(iter(sharing.values()))
        found += fitting(stores[_store(first)], sharing, limit, device)
    passes = f"{len(found)} pass{'' if len(found) == 1 else 'es'} over the data"
    done = (
        f", {len(specs) - len(left)} more have ended" if len(left) < len(specs) else ""
    )
    typer.echo(
        f"{len(left)} SAEs in {passes}{done}; {limit / 1e9:.2g} GB may be taken",
        err=True,
    )
    for i, group in enumerate(found):
        more = "; more than may be taken" if group.memory.total > limit else ""
        typer.echo(
            f"pass {i + 1}: {len(group.specs)} SAEs, about {group.memory}{more}",
            err=True,
        )
    return [group.specs for group in found]


def _store(spec: TrainSpec) -> tuple[str, bool]:
    """The store that a run opens, and whether it follows it."""
    return spec.store, spec.stream.follow


def run_groups(
    parts: list[dict[str, TrainSpec]],
    device: str,
    resume: bool,
    tensorboard: bool = False,
    wandb: str | None = None,
    on_corrupt: str = "error",
    together: Together | None = None,
    out: str | None = None,
) -> None:
    """Train groups one after the other, with a progress bar; `together` with other
    processes that do the same.

    At the end, say how good the SAEs are and what to do next. A signal ends it as soon
    as all is saved, and the command that goes on is told. out: the folder of a sweep.
    """
    from rich.console import Console

    from actstore.machine.glibc_malloc import keep_freed_memory
    from actstore.machine.stop_signals import signals
    from trainer.training.final_summary import show
    from trainer.training.journal_sinks import sinks_for
    from trainer.training.resume_hint import saying_how_to_resume
    from trainer.training.stream_warnings import say_if_slow

    corrupt = _on_corrupt(on_corrupt)
    keep_freed_memory()
    lead = together is None or together.world.lead
    console = Console(stderr=True, quiet=not lead)
    ended: list[Ended] = []
    if lead:
        say_if_slow(
            console, (spec for group in parts for spec in group.values()), device
        )
    with signals() as stop, saying_how_to_resume(console):
        sinks = (
            sinks_for([url for group in parts for url in group], tensorboard, wandb)
            if lead
            else None
        )
        for group in parts:
            ended += _run_group(
                group, console, stop, device, resume, corrupt, sinks, together
            )
    show(console, ended, out)


def _run_group(
    group: dict[str, TrainSpec],
    console: Console,
    stop: Stop,
    device: str,
    resume: bool,
    corrupt: OnCorrupt,
    sinks: Sinks | None,
    together: Together | None,
) -> list[Ended]:
    """Train one group; the lead looks at what came of it."""
    from rich.console import Console

    from actstore.store.open_store import open as open_store
    from trainer.training.final_summary import ended
    from trainer.training.progress_display import shown
    from trainer.training.stream_warnings import notes_on
    from trainer.training.train_group import train_group

    spec, began = next(iter(group.values())), time.monotonic()
    last: dict[str, Progress] = {}
    with (
        notes_on(Console(stderr=True) if console.quiet else console),
        shown(console) as display,
    ):

        def report(now: Progress) -> None:
            last.update(dict.fromkeys(now.last, now))
            display(now)

        train_group(
            open_store(spec.store, follow=spec.stream.follow),
            group,
            device=device,
            on_corrupt=corrupt,
            resume=resume,
            report=report,
            sinks=sinks,
            together=together,
            stop=stop,
            tell=lambda line: console.print(line, highlight=False, soft_wrap=True),
        )
    seconds = time.monotonic() - began
    if console.quiet:
        return []
    where = device if together is None else str(together.world.device)
    whole = together is None or not together.shard_dictionary
    with console.status("evaluating"):
        return [
            ended(url, spec.store, where, last.get(url), seconds, whole)
            for url in group
        ]


def _on_corrupt(word: str) -> OnCorrupt:
    from actstore.errors import SpecError

    if word == "error":
        return "error"
    if word == "skip":
        return "skip"
    raise SpecError(f"--on-corrupt {word}: wanted error or skip")
