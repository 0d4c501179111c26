"""A sweep by jobs of Slurm's: each trains a pass."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from actstore.engines.engine_option import EngineOptions
from actstore.engines.slurm_engine import Task, clear_left, run_jobs
from actstore.engines.slurm_folder import JobFolder, folder_beside
from actstore.errors import SpecError
from actstore.format.storage import Storage
from actstore.machine.stop_signals import Stop, signals
from actstore.store.open_store import store_url
from schemas.service import PassSpec
from schemas.slurm import JobWork
from schemas.train import TrainSpec
from trainer.distributed.world_of_one import ONE_WORLD
from trainer.training.final_summary import ended, show
from trainer.training.learner import Interval
from trainer.training.one_pass import train_pass
from trainer.training.progress_display import shown
from trainer.training.step_loop import Progress
from trainer.training.sweep_plan import memory_limit, plan_passes

if TYPE_CHECKING:
    from trainer.training.train import Settings

KEPT = "what was saved is kept; the same command goes on with --resume"
NAMED = 3  # runs of a pass that messages name
# Of the progress, what a job tells besides the last figures of each run.
FIGURES = ("step", "steps", "rows_per_s", "stall", "seconds", "rows", "stall_s")


def sweep_on_slurm(
    runs: dict[str, TrainSpec],
    memory: str | int | None,
    engine: EngineOptions,
    settings: Settings,
    sweep_folder: str,
) -> None:
    """Train the runs of a sweep by jobs, one for each pass.

    Args:
        runs: The specs, by the URL of the run's folder, which all nodes have to see.
        memory: What the SAEs of one pass may take: "20GB", or bytes. None for what
            this machine has free, which is the nodes' where they are like it.
        engine: Slurm or a stand-in for it, its options, and how many jobs at once.
        settings: How the runs are trained.
        sweep_folder: The folder of all of them.

    Raises:
        SpecError: It is not known what a pass may take.
        EngineError: Slurm is not there or refuses, or a job failed.
        Stopped: A signal came; jobs that were submitted go on.
    """
    console = Console(stderr=True, quiet=not settings.verbose)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    limit = _limit(memory, settings.device)
    passes = plan_passes(
        runs, limit, settings.device, settings.resume, say, engine.workers or 1
    )
    places = {spec.store: store_url(spec.store) for spec in runs.values()}
    storage = Storage(sweep_folder)
    task = Task(
        what=json.dumps({_whole(url): spec.to_json() for url, spec in runs.items()}),
        function="trainer.training.sweep_on_slurm:train_share",
        works=[_work(one, places, settings) for one in passes],
        short_name="sweep",
        at_once=engine.workers,
        gpu=settings.device != "cpu",
        kept=KEPT,
    )
    began = time.monotonic()
    told: list[Progress | None] = [None] * len(passes)
    folder = JobFolder(folder_beside(storage.local, _name(storage.url)))
    if not passes:
        clear_left(folder)
    else:
        with signals(), shown(console) as display:

            def look(texts: Sequence[str | None]) -> None:
                told[:] = [
                    None if text is None else progress_told(text) for text in texts
                ]
                if any(told):
                    display(combined(told))

            run_jobs(task, engine, folder, look, say)
    if console.quiet:
        return
    seconds = time.monotonic() - began
    last = {url: now for now in told if now for url in now.last}
    with console.status("evaluating"):
        summaries = [
            ended(
                url,
                places[runs[url].store],
                "cpu",
                last.get(_whole(url)),
                seconds,
                evaluate=True,
            )
            for one in passes
            for url in one
        ]
    show(console, summaries, sweep_folder)


def _limit(memory: str | int | None, device: str) -> int:
    if memory is None and device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise SpecError(
                "--memory: this machine has no GPU whose memory could be asked; say"
                " what the SAEs of one pass may take of a node's, such as 40GB"
            )
    return memory_limit(memory, device, ONE_WORLD)


def _work(
    one: dict[str, TrainSpec], places: dict[str, str], settings: Settings
) -> JobWork:
    first = next(iter(one.values()))
    spec = PassSpec.model_validate(
        {
            "runs": {_whole(url): spec for url, spec in one.items()},
            "store": places[first.store],
            "device": settings.device,
            "on_corrupt": settings.on_corrupt,
            "sinks": settings.sinks,
        }
    )
    names = [url.rpartition("/")[2] for url in one]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return JobWork(name=f"runs {', '.join(names[:NAMED])}{more}", text=spec.to_json())


def _whole(url: str) -> str:
    """Return a URL that does not depend on the folder that a process is in."""
    return str(Path(url).absolute()) if Storage(url).local else url


def _name(url: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in url)[:200]


def train_share(text: str, stop: Stop, tell: Callable[[str], None]) -> None:
    """Train a pass, in a job.

    Args:
        text: A PassSpec.
        stop: Once it has a signal, training saves and ends.
        tell: Is given the progress, as JSON.
    """

    def report(now: Progress) -> None:
        tell(json.dumps(_told(now)))

    train_pass(PassSpec.model_validate_json(text), stop=stop, report=report)


def _told(now: Progress) -> dict[str, Any]:
    figures = {name: getattr(now, name) for name in FIGURES}
    last = {
        url: [one.rows, one.loss, one.mse, one.l0, one.fvu, one.dead]
        for url, one in now.last.items()
    }
    return {**figures, "last": last}


def progress_told(text: str) -> Progress:
    """Return the progress that a job has told."""
    told = json.loads(text)
    last = {url: _interval(*one) for url, one in told["last"].items()}
    return Progress(**{name: told[name] for name in FIGURES}, last=last)


def _interval(
    rows: int, loss: float, mse: float, l0: float, fvu: float, dead: int
) -> Interval:
    return Interval(rows, loss, mse, l0, fvu, dead, layers=[], parts={})


def combined(told: Sequence[Progress | None]) -> Progress:
    """Return the progress of several passes as that of one.

    told: Of each, None before it has begun; one has.
    """
    begun = [now for now in told if now is not None]
    steps = sum(now.steps for now in begun)
    return Progress(
        step=sum(now.step for now in begun),
        # Of the others no more is known than that they are there.
        steps=steps * len(told) // len(begun),
        rows_per_s=sum(now.rows_per_s for now in begun),
        stall=sum(now.stall for now in begun) / len(begun),
        last={url: one for now in begun for url, one in now.last.items()},
    )
