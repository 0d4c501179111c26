"""`trainer train` and `trainer sweep`. Importing this loads typer only."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.distributed.launch import say, under_torchrun
from trainer.training.specs import load_spec, load_sweep

if TYPE_CHECKING:
    from rich.console import Console

    from actstore.stopping import Stop
    from schemas.train import TrainSpec
    from trainer.distributed.start import Together
    from trainer.training.journal import Sinks
    from trainer.training.loop import OnCorrupt
    from trainer.training.stepping import Progress
    from trainer.training.summary import Ended

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also write RUN/tensorboard; the run must be local.")]
Wandb = Annotated[str | None, typer.Option("--wandb", metavar="PROJECT", help="Also log to Weights & Biases.")]
Corrupt = Annotated[
    str, typer.Option("--on-corrupt", help="error, or skip: go on without the rows of chunks that cannot be read.")
]
Shard = Annotated[
    bool, typer.Option("--shard-dictionary", help="Under torchrun: split the dictionary over processes, not the batch.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is there, bit by bit.")]


def train_command(
    out: Annotated[str, typer.Option(help="The run's folder: a path or any fsspec URL.")],
    store: Annotated[str | None, typer.Option(help="The store to train from.")] = None,
    spec: Annotated[str | None, typer.Option(help="A YAML file with a TrainSpec; options override it.")] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="relu_l1, topk, batch_topk, jumprelu, gated, matryoshka, nsae, mlp_encoder, transcoder or crosscoder."
        ),
    ] = None,
    inner: Annotated[
        str | None, typer.Option(help="transcoder, crosscoder: their latents, such as topk; --k and --l1 are theirs.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="topk kinds: latents per row.")] = None,
    l1: Annotated[float | None, typer.Option(help="relu_l1, gated, mlp_encoder: sparsity coefficient.")] = None,
    expansion: Annotated[float | None, typer.Option(help="Dictionary size over d.")] = None,
    sites: Annotated[list[str] | None, typer.Option(help="Names or patterns; all sites if not given.")] = None,
    pairs_with: Annotated[
        list[str] | None,
        typer.Option(help="Output sites for a transcoder, names or patterns: one for each of --sites, in their order."),
    ] = None,
    aligned: Annotated[bool, typer.Option("--aligned", help="Rows of all sites of a token, for a crosscoder.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Train while the store is still being harvested.")] = False,
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
    on_corrupt: Corrupt = "error",
    resume: Resume = False,
    tensorboard: TensorBoard = False,
    wandb: Wandb = None,
    shard_dictionary: Shard = False,
) -> None:
    """Train one SAE on the mixture of a store's sites (or on some of them)."""
    from actstore.harvesting.specs import parse_count

    given: dict[str, Any] = {
        "store": store,
        "sae.kind": sae,
        "sae.inner.kind": inner,
        "sae.k": k,
        "sae.l1": l1,
        "sae.expansion": expansion,
        "stream.sites": tuple(sites) if sites else None,
        "stream.mode": "pairs" if pairs_with else "aligned" if aligned else None,
        "stream.targets": tuple(pairs_with) if pairs_with else None,
        "stream.follow": True if follow else None,
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
    with under_torchrun(device, shard_dictionary) as together:
        made = load_spec(spec, {path: value for path, value in given.items() if value is not None})
        run_groups([{out: made}], device, resume, tensorboard, wandb, on_corrupt, together)
    say(f"run: {out}")


def sweep_command(
    sweep: Annotated[str, typer.Argument(help="A YAML file with a SweepSpec: base, and grid or runs.")],
    out: Annotated[str, typer.Option(help="The folder that gets a run folder for each SAE.")],
    store: Annotated[str | None, typer.Option(help="The store to train from, instead of the file's.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the SAEs of one pass may take: 20GB; default: what the device has free.")
    ] = None,
    device: Device = "cpu",
    on_corrupt: Corrupt = "error",
    resume: Resume = False,
    tensorboard: TensorBoard = False,
    wandb: Wandb = None,
    shard_dictionary: Shard = False,
) -> None:
    """Train many SAEs; those that can share a stream, and fit into memory together, share one pass over the data."""
    from trainer.training.sweep import expand

    with under_torchrun(device, shard_dictionary) as together:
        made = load_sweep(sweep, store)
        specs = {f"{out.rstrip('/')}/{name}": spec for name, spec in expand(made).items()}
        lead = together is None or together.world.lead
        limit = _limit(memory, device, together)
        parts = [list(part) for part in _plan(specs, limit, device, resume)] if lead else []
        if together is not None:  # the lead's view of folders is that of all
            parts = together.world.shared(parts)
        of_specs = [{url: specs[url] for url in part} for part in parts]
        run_groups(of_specs, device, resume, tensorboard, wandb, on_corrupt, together, out)
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
    out: str | None = None,
) -> None:
    """Train groups one after the other, with a progress bar; `together` with other processes that do the same.

    At the end, say how good the SAEs are and what to do next. A signal ends it as soon as all is saved, and the command
    that goes on is told. out: the folder of a sweep.
    """
    from rich.console import Console

    from actstore.allocator import keep_freed_memory
    from actstore.stopping import signals
    from trainer.training.again import saying_how_to_resume
    from trainer.training.notes import say_if_slow
    from trainer.training.sinks import sinks_for
    from trainer.training.summary import show

    corrupt = _on_corrupt(on_corrupt)
    keep_freed_memory()
    lead = together is None or together.world.lead
    console = Console(stderr=True, quiet=not lead)
    ended: list[Ended] = []
    if lead:
        say_if_slow(console, (spec for group in parts for spec in group.values()), device)
    with signals() as stop, saying_how_to_resume(console):
        sinks = sinks_for([url for group in parts for url in group], tensorboard, wandb) if lead else None
        for group in parts:
            ended += _run_group(group, console, stop, device, resume, corrupt, sinks, together)
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

    from actstore.store import open as open_store
    from trainer.training.display import shown
    from trainer.training.loop import train_group
    from trainer.training.notes import notes_on
    from trainer.training.summary import ended

    spec, began = next(iter(group.values())), time.monotonic()
    last: dict[str, Progress] = {}
    with notes_on(Console(stderr=True) if console.quiet else console), shown(console) as display:

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
        )
    seconds = time.monotonic() - began
    if console.quiet:
        return []
    where = device if together is None else str(together.world.device)
    whole = together is None or not together.shard_dictionary
    with console.status("evaluating"):
        return [ended(url, spec.store, where, last.get(url), seconds, whole) for url in group]


def _on_corrupt(word: str) -> OnCorrupt:
    from actstore.errors import SpecError

    if word == "error":
        return "error"
    if word == "skip":
        return "skip"
    raise SpecError(f"--on-corrupt {word}: wanted error or skip")
