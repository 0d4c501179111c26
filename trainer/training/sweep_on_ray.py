"""A sweep on Ray: its passes are planned for the workers that there are, and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from actstore.engines.engine_option import EngineOptions
from actstore.machine.stop_signals import signals
from actstore.store.open_store import store_url
from schemas.service import PassSpec
from schemas.train import TrainSpec
from trainer.distributed.world_of_one import ONE_WORLD
from trainer.runs.notes import on_console
from trainer.training.final_summary import Ended, ended, show
from trainer.training.journal_sinks import sinks_for
from trainer.training.progress_display import shown
from trainer.training.step_loop import Progress
from trainer.training.stream_warnings import say_if_slow
from trainer.training.sweep_plan import memory_limit, plan_passes

if TYPE_CHECKING:
    from trainer.training.pass_driver import EndedPass
    from trainer.training.train import Settings

NO_LIMIT = 1 << 62


def sweep_on_ray(
    runs: dict[str, TrainSpec],
    memory: str | int | None,
    engine: EngineOptions,
    settings: Settings,
    sweep_folder: str,
) -> None:
    """Train the runs of a sweep on a Ray cluster; arguments as of `sweep_on_engine`.

    Raises:
        SpecError, SaeError, RunError, StoreError: As `sweep` does.
        EngineError: Ray is missing, or its workers are lost again and again.
        Stopped: There was a signal; what was trained is saved.
    """
    # All that may be wrong with specs and folders, before anything is started.
    sinks_for(list(runs), settings.sinks)
    groups = plan_passes(runs, NO_LIMIT, settings.device, settings.resume, _silent)
    console = Console(stderr=True, quiet=not settings.verbose)
    places = {spec.store: store_url(spec.store) for spec in runs.values()}
    say_if_slow(console, list(runs.values()), settings.device)
    n_left = sum(len(group) for group in groups)
    if n_left == 0:
        _printer(console)(f"0 SAEs to train, {len(runs)} have ended")
        return
    passes = _on_ray(runs, n_left, memory, engine, settings, places, console)
    if not console.quiet:
        with console.status("evaluating"):
            summaries = {one.url: one for one in _summaries(passes)}
        in_order = [summaries[url] for url in runs if url in summaries]
        show(console, in_order, sweep_folder)


def _on_ray(
    runs: dict[str, TrainSpec],
    n_left: int,
    memory: str | int | None,
    engine: EngineOptions,
    settings: Settings,
    places: dict[str, str],
    console: Console,
) -> list[EndedPass]:
    """Train the runs that are left on a Ray cluster."""
    from actstore.engines.ray_engine import (
        RayWorkers,
        connected,
        room_for,
        threads_each,
    )
    from actstore.engines.worker_place import place_like_here
    from schemas.engines import PassSetup
    from trainer.training.pass_driver import WORK, PassDriver

    on_gpu = settings.device == "cuda"
    threads = None if on_gpu else threads_each(engine, torch.get_num_threads())
    cpus = threads or 1
    setup = PassSetup(place=place_like_here(settings.device, threads))
    with (
        signals() as stop,
        shown(console) as display,
        connected(engine, cpus) as ray,
        closing(
            RayWorkers(ray, room_for(ray, engine, cpus, int(on_gpu)), WORK)
        ) as workers,
        stop.held(),
    ):
        tell = _printer(console)
        driver = PassDriver(
            workers=workers,
            setup=setup.to_json(),
            stop=stop,
            tell=lambda note: on_console(console, note),
            report=display,
        )
        n_workers = min(workers.room.n_workers, n_left)
        there = driver.meet(n_workers)
        if memory is not None:
            there = memory_limit(memory, settings.device, ONE_WORLD)
        groups = plan_passes(
            runs, there, settings.device, settings.resume, tell, n_workers
        )
        return driver.train([_pass(group, places, settings) for group in groups])


def _pass(
    group: dict[str, TrainSpec], places: dict[str, str], settings: Settings
) -> PassSpec:
    """Return a group as a worker is given it."""
    first = next(iter(group.values()))
    return PassSpec.model_validate(
        {
            "runs": group,
            "store": places[first.store],
            "device": settings.device,
            "on_corrupt": settings.on_corrupt,
            "sinks": settings.sinks,
        }
    )


def _summaries(passes: Sequence[EndedPass]) -> list[Ended]:
    """Look at the runs of all passes, on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    summaries = []
    for one in passes:
        last = None
        if one.progress is not None:
            last = Progress(
                step=one.progress.step,
                steps=one.progress.steps,
                rows_per_s=one.progress.rows_per_s,
                stall=0.0,
                seconds=one.progress.seconds,
                rows=one.progress.rows,
                stall_s=one.progress.stall_s,
            )
        summaries += [
            ended(url, one.spec.store, device, last, one.seconds, evaluate=True)
            for url in one.spec.runs
        ]
    return summaries


def _printer(console: Console) -> Callable[[str], None]:
    """Return what prints a line as it is."""
    return lambda line: console.print(
        line, highlight=False, markup=False, soft_wrap=True
    )


def _silent(_: str) -> None:
    """Tell nobody."""
