"""The commands `trainer train` and `trainer sweep`. Importing this loads typer only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from actstore.engines import cli_engine_options as engines
from trainer.distributed.launch import lead, say
from trainer.training import train_options
from trainer.training.train_spec import from_options, load_spec


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
    l1: train_options.PenaltyWeight = None,
    l0: train_options.PenaltyWeight = None,
    alpha: train_options.PenaltyWeight = None,
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
    snapshots: train_options.Snapshots = None,
    tensorboard: train_options.TensorBoard = False,
    wandb: train_options.Wandb = None,
    trackio: train_options.Trackio = None,
    mlflow: train_options.Mlflow = None,
    device: train_options.Device = "cpu",
    shard_dictionary: train_options.Shard = False,
) -> None:
    """Train one SAE on the mixture of a store's sites (or on some of them)."""
    # Taken before any other local variable is made: these are the options.
    given = {
        field: value
        for field, value in locals().items()
        if field in train_options.FIELDS
    }
    from schemas.service import JournalSinks
    from trainer.training.train import Settings, train_one

    settings = Settings(
        device=device,
        resume=resume,
        on_corrupt=on_corrupt,
        sinks=JournalSinks(
            tensorboard=tensorboard, wandb=wandb, trackio=trackio, mlflow=mlflow
        ),
        shard_dictionary=shard_dictionary,
        verbose=True,
    )
    with _resume_hint():
        train_one(lambda: load_spec(spec, from_options(given, aligned)), out, settings)
    say(f"run: {out}")


def sweep_command(
    spec: Annotated[
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
    trackio: train_options.Trackio = None,
    mlflow: train_options.Mlflow = None,
    device: train_options.Device = "cpu",
    memory: train_options.Memory = None,
    shard_dictionary: train_options.Shard = False,
    engine: engines.Engine = None,
    workers: engines.Workers = None,
    partition: engines.Partition = None,
    time: engines.Time = None,
    account: engines.Account = None,
) -> None:
    """Train many SAEs, as many as fit into memory in one pass over the data."""
    from trainer.training.train import sweep

    with _resume_hint():
        urls = sweep(
            spec,
            out,
            store=store,
            memory=memory,
            resume=resume,
            device=device,
            on_corrupt=on_corrupt,
            tensorboard=tensorboard,
            wandb=wandb,
            trackio=trackio,
            mlflow=mlflow,
            shard_dictionary=shard_dictionary,
            engine=engine,
            workers=workers,
            slurm=engines.slurm_options(partition, time, account),
            verbose=True,
        )
    for url in urls.values():
        say(f"run: {url}")


@contextmanager
def _resume_hint() -> Iterator[None]:
    """Say how to go on, once for all processes, where a signal ends what is inside."""
    from rich.console import Console

    from trainer.training.resume_hint import saying_how_to_resume

    with saying_how_to_resume(Console(stderr=True, quiet=not lead())):
        yield
