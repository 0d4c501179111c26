"""Trains SAEs: one run, or a sweep of many that share passes over the data."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.engines.engine_option import EngineOptions, engine_options
from actstore.errors import SpecError
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.machine.stop_signals import Stop, signals
from actstore.store.open_store import open as open_store
from actstore.store.open_store import store_url
from schemas.service import NO_SINKS, JournalSinks
from schemas.train import SweepSpec, TrainSpec
from trainer.distributed.launch import under_torchrun
from trainer.distributed.world_of_one import OneWorld
from trainer.runs.journal import Sinks
from trainer.runs.trained_sae import TrainedSae, load
from trainer.training.final_summary import Ended, ended, show
from trainer.training.journal_sinks import sinks_for
from trainer.training.progress_display import shown
from trainer.training.step_loop import Progress
from trainer.training.stream_warnings import notes_on, say_if_slow
from trainer.training.sweep import expand
from trainer.training.sweep_plan import memory_limit, plan_passes
from trainer.training.train_group import OnCorrupt, train_group
from trainer.training.train_spec import load_spec, load_sweep, source_name

if TYPE_CHECKING:
    from trainer.distributed.processes import World

Group = dict[str, TrainSpec]  # runs that share a pass, by URL


@dataclass(frozen=True, slots=True)
class Settings:
    """How runs are trained that is no part of their specs and changes no result.

    Attributes:
        device: Where they are trained.
        resume: Whether runs that are there go on from their last checkpoints.
        on_corrupt: "error", or "skip" to go on without rows that cannot be read.
        sinks: Where records go besides the journals.
        shard_dictionary: Whether processes split the dictionary and not the batches.
        verbose: Whether progress and a summary are printed to standard error.
    """

    device: str = "cpu"
    resume: bool = False
    on_corrupt: str = "error"
    sinks: JournalSinks = NO_SINKS
    shard_dictionary: bool = False
    verbose: bool = False


@checked(
    out=arguments.folder,
    resume=arguments.flag,
    device=arguments.device,
    on_corrupt=arguments.choice("error", "skip"),
    tensorboard=arguments.flag,
    wandb=optional(arguments.text),
    trackio=optional(arguments.text),
    mlflow=optional(arguments.text),
    shard_dictionary=arguments.flag,
    verbose=arguments.flag,
)
def train(
    spec: TrainSpec | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "cpu",
    on_corrupt: str = "error",
    tensorboard: bool = False,
    wandb: str | None = None,
    trackio: str | None = None,
    mlflow: str | None = None,
    shard_dictionary: bool = False,
    verbose: bool = False,
) -> TrainedSae:
    """Train one SAE on the mixture of a store's sites, or on some of them.

    Under torchrun every process calls this, and the processes train the SAE together.

    Args:
        spec: What to train: a TrainSpec, the same as nested keys and values, or a YAML
            file of them.
        out: The run's folder: a path or any fsspec URL.
        resume: Go on with the run that is there, bit by bit.
        device: Where it is trained: "cpu", "cuda", "cuda:1", ...
        on_corrupt: "error", or "skip" to go on without the rows of chunks that cannot
            be read.
        tensorboard: Also write RUN/tensorboard; the run must be local.
        wandb: A project of Weights & Biases to log to as well.
        trackio: A project of trackio to log to as well, in its folder of this machine.
        mlflow: An experiment of MLflow to log to as well, at $MLFLOW_TRACKING_URI.
        shard_dictionary: Under torchrun, split the dictionary over the processes and
            not the batches.
        verbose: Print progress, and how good the SAE is, to standard error.

    Returns:
        The trained SAE, as `trainer.load` gives it.

    Raises:
        SpecError: The spec is not valid.
        SaeError: The spec does not fit its store.
        RunError: Something else lies in the run's folder, or a run and `resume` is not
            given.
        DivergedError: The loss is not finite any more.
        Stopped: A SIGINT or SIGTERM came; what was trained has been saved.

    Examples:
        >>> from trainer import TopK, TrainSpec, train
        >>> spec = TrainSpec(store="store", sae=TopK(k=4, n_latents=32), rows=2_000)
        >>> sae = train(spec, "runs/small")
        >>> sae.n_latents
        32

        A spec may also be given as keys and values:

        >>> keys = {"store": "store", "sae": {"k": 4, "n_latents": 32}, "rows": 2_000}
        >>> train(keys, "runs/small", resume=True).spec.kind
        'topk'
    """
    if spec is None:
        raise SpecError("train: wanted a TrainSpec, a dict of its fields, or a file")
    settings = Settings(
        device=device,
        resume=resume,
        on_corrupt=on_corrupt,
        sinks=JournalSinks(
            tensorboard=tensorboard, wandb=wandb, trackio=trackio, mlflow=mlflow
        ),
        shard_dictionary=shard_dictionary,
        verbose=verbose,
    )
    folder = run_folder(out)
    train_one(lambda: load_spec(spec), folder, settings)
    return load(folder)


def train_one(read_spec: Callable[[], TrainSpec], out: str, settings: Settings) -> None:
    """Train one SAE.

    Args:
        read_spec: Gives its spec. It is called once the processes know each other, so
            that only one of them says what is wrong with the spec.
        out: The run's folder.
        settings: How it is trained.
    """
    folder = run_folder(out)
    with under_torchrun(settings.device, settings.shard_dictionary) as world:
        _train_groups([{folder: read_spec()}], settings, world)


def run_folder(out: str | os.PathLike[str]) -> str:
    """Return a run's folder as it is known: without a slash at its end."""
    path = os.fspath(out)
    return path.rstrip("/") or path


@checked(
    out=arguments.folder,
    store=optional(arguments.folder),
    memory=optional(arguments.size),
    resume=arguments.flag,
    device=arguments.device,
    on_corrupt=arguments.choice("error", "skip"),
    tensorboard=arguments.flag,
    wandb=optional(arguments.text),
    trackio=optional(arguments.text),
    mlflow=optional(arguments.text),
    shard_dictionary=arguments.flag,
    engine=optional(arguments.text_such_as("ray")),
    workers=optional(arguments.count),
    slurm=optional(arguments.mapping),
    verbose=arguments.flag,
)
def sweep(
    spec: SweepSpec | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_corrupt: str = "error",
    tensorboard: bool = False,
    wandb: str | None = None,
    trackio: str | None = None,
    mlflow: str | None = None,
    shard_dictionary: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    slurm: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> dict[str, str]:
    """Train many SAEs.

    Those that can share a stream, and fit into memory together, share one pass over the
    data. Each has a folder of its own, as if it had been trained by itself.

    Args:
        spec: What to train: a SweepSpec, the same as nested keys and values, or a YAML
            file of them.
        out: The folder that gets a run folder for each SAE.
        store: The store to train from, in the place of the one that the spec names.
        memory: What the SAEs of one pass may take: "20GB", or bytes. None for what the
            device has free.
        resume: Go on with runs that are there; those that have ended are left as they
            are.
        device: As in `train`.
        on_corrupt: As in `train`.
        tensorboard: As in `train`.
        wandb: As in `train`.
        trackio: As in `train`.
        mlflow: As in `train`.
        shard_dictionary: As in `train`.
        engine: `ray` (on this machine), `ray:ADDRESS` (a cluster) or `slurm`: what
            places passes on machines, all of which have to see `out` and the store.
            None: this process trains one pass after the other.
        workers: How many passes an engine trains at once; None: as many as it has room
            for.
        slurm: Options of the engine Slurm: `partition`, `time`, `account`.
        verbose: As in `train`.

    Returns:
        The folder of each run, by the run's name, which says what varies.

    Raises:
        SpecError: The spec of the sweep, or of one of its runs, is not valid.
        SaeError: Two of the runs are the same, or one does not fit its store.
        RunError: As in `train`, before anything is trained.

    Examples:
        >>> import trainer
        >>> base = {"store": "store", "sae": {"kind": "topk", "n_latents": 32}}
        >>> spec = {"base": {**base, "rows": 2_000}, "grid": {"sae.k": [2, 4]}}
        >>> trainer.sweep(spec, "runs/sweep")
        {'k=2': 'runs/sweep/k=2', 'k=4': 'runs/sweep/k=4'}
        >>> trainer.load("runs/sweep/k=4").spec.k
        4
    """
    settings = Settings(
        device=device,
        resume=resume,
        on_corrupt=on_corrupt,
        sinks=JournalSinks(
            tensorboard=tensorboard, wandb=wandb, trackio=trackio, mlflow=mlflow
        ),
        shard_dictionary=shard_dictionary,
        verbose=verbose,
    )
    is_spec = isinstance(spec, SweepSpec)
    where = "the sweep" if is_spec else source_name(spec, "the sweep", "a SweepSpec")
    placed = engine_options(engine, workers, slurm, device=device)
    _check_placeable(placed, shard_dictionary)
    with under_torchrun(device, shard_dictionary) as world:
        specs = expand(load_sweep(spec, arguments.path_or_none(store)), where)
        url_of = {name: f"{run_folder(out)}/{name}" for name in specs}
        runs = {url_of[name]: run_spec for name, run_spec in specs.items()}
        if placed is not None:
            from trainer.training.sweep_on_engine import sweep_on_engine

            sweep_on_engine(runs, memory, placed, settings, run_folder(out))
            return url_of
        groups = _groups(runs, memory, settings, world)
        _train_groups(groups, settings, world, sweep_folder=run_folder(out))
    return url_of


def _check_placeable(placed: EngineOptions | None, shard_dictionary: bool) -> None:
    """Raise SpecError where an engine and torchrun would both share the work."""
    if placed is None:
        return
    if shard_dictionary:
        raise SpecError(
            "--shard-dictionary: the processes of torchrun share a dictionary, those of"
            " an engine do not; leave it or --engine out"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SpecError(
            "--engine: an engine starts its processes itself; run the command without"
            " torchrun"
        )


def _groups(
    runs: Group,
    memory: str | int | None,
    settings: Settings,
    world: World | OneWorld,
) -> list[Group]:
    """Divide the runs that are left into groups, the same in all processes."""
    limit = memory_limit(memory, settings.device, world)
    passes: list[list[str]] = []
    if world.lead:
        console = _console(settings, world)
        groups = plan_passes(
            runs, limit, settings.device, settings.resume, _printer(console)
        )
        passes = [list(group) for group in groups]
    # What the lead has seen in the runs' folders is what counts.
    passes = world.shared(passes)
    return [{url: runs[url] for url in urls} for urls in passes]


def _train_groups(
    groups: Sequence[Group],
    settings: Settings,
    world: World | OneWorld,
    sweep_folder: str | None = None,
) -> None:
    """Train groups one after the other, and say at the end how good the SAEs are.

    Args:
        groups: The groups.
        settings: How they are trained.
        world: The processes that do the same.
        sweep_folder: The folder of a sweep's runs; None where there is one run.
    """
    checked_on_corrupt(settings.on_corrupt)
    keep_freed_memory()
    console = _console(settings, world)
    specs = [spec for group in groups for spec in group.values()]
    urls = [url for group in groups for url in group]
    say_if_slow(console, specs, settings.device)
    places = _places(specs, world)
    summaries: list[Ended] = []
    with signals() as stop:
        sinks = None
        if world.lead:
            sinks = sinks_for(urls, settings.sinks)
        for group in groups:
            store = next(iter(group.values())).store
            # One that the lead was not given is opened, or refused, as it is called.
            place = places.get(store, store)
            summaries += _train_group(
                group, place, console, stop, settings, sinks, world
            )
    show(console, summaries, sweep_folder)


def _places(specs: Sequence[TrainSpec], world: World | OneWorld) -> dict[str, str]:
    """Return where each store lies, by what the specs call it, for all processes.

    A name in a catalog is looked up once: its tag may move while runs are trained.
    """
    places = {}
    if world.lead:
        places = {url: store_url(url) for url in {spec.store for spec in specs}}
    shared: dict[str, str] = world.shared(places)
    return shared


def _train_group(
    group: Group,
    place: str,
    console: Console,
    stop: Stop,
    settings: Settings,
    sinks: Sinks | None,
    world: World | OneWorld,
) -> list[Ended]:
    """Train one group; where that is shown, look at what came of it.

    place: where its store lies.
    """
    first = next(iter(group.values()))
    began = time.monotonic()
    last_progress: dict[str, Progress] = {}
    notes: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if settings.verbose:
        # A stream's notes are of one process, which may be one that shows nothing else.
        notes = notes_on(Console(stderr=True) if console.quiet else console)
    with notes, shown(console) as display:

        def report(now: Progress) -> None:
            for url in now.last:
                last_progress[url] = now
            display(now)

        train_group(
            open_store(place, follow=first.stream.follow),
            group,
            device=settings.device,
            on_corrupt=checked_on_corrupt(settings.on_corrupt),
            resume=settings.resume,
            report=report,
            sinks=sinks,
            world=world,
            shard_dictionary=settings.shard_dictionary,
            stop=stop,
            tell=_printer(console),
        )
    seconds = time.monotonic() - began
    if console.quiet:
        return []
    device = settings.device
    if not isinstance(world, OneWorld):
        device = str(world.device)
    fits_one_device = not settings.shard_dictionary
    with console.status("evaluating"):
        return [
            ended(
                url,
                place,
                device,
                last_progress.get(url),
                seconds,
                fits_one_device,
            )
            for url in group
        ]


def _console(settings: Settings, world: World | OneWorld) -> Console:
    """Return the console that training is shown on; one that shows nothing is quiet."""
    is_shown = settings.verbose and world.lead
    return Console(stderr=True, quiet=not is_shown)


def _printer(console: Console) -> Callable[[str], None]:
    """Return what prints a line as it is."""
    return lambda line: console.print(
        line, highlight=False, markup=False, soft_wrap=True
    )


def checked_on_corrupt(word: str) -> OnCorrupt:
    """Return what is done about rows that cannot be read, "error" or "skip".

    Raises:
        SpecError: It is neither.
    """
    if word == "error":
        return "error"
    if word == "skip":
        return "skip"
    raise SpecError(f"--on-corrupt {word}: wanted error or skip")
