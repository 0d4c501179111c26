"""The commands `trainer eval` and `trainer calibrate`.

Importing this loads typer only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import AsJson, Device, TrustAgain, one_of
from trainer.runs.run_options import OtherStore

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainer.evaluation.evaluate import Phase

AllRows = Annotated[
    bool,
    typer.Option(
        "--all-rows", help="Also rows that the run's own filter left out of training."
    ),
]


def eval_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    store: OtherStore = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="held_out or train.",
            autocompletion=one_of("held_out", "train"),
        ),
    ] = "held_out",
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Rows per site at most: 50k, 1M.",
            show_default="all of them",
        ),
    ] = None,
    all_rows: AllRows = False,
    ce: Annotated[
        bool,
        typer.Option(
            "--ce",
            help="Also run the language model: CE and KL with each site patched.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model, if it is not where the harvest found it; implies --ce.",
            show_default="the store's",
        ),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Held-out sequences for CE and KL.",
            show_default="64",
        ),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="The SAEs that a run kept from its training (train --snapshots N).",
        ),
    ] = False,
    trust_remote_code: TrustAgain = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Metrics of trained SAEs per layer and pooled, from held-out rows.

    They are written to RUN/eval.json; with --checkpoints to RUN/evals.jsonl.
    """
    from rich.console import Console
    from rich.progress import Progress

    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.evaluation.calibrate import filtered_runs
    from trainer.evaluation.eval_tables import over_training, tables
    from trainer.evaluation.evaluate import check_arguments, evaluate
    from trainer.evaluation.evaluate_checkpoints import evaluate_checkpoints
    from trainer.runs.notes import as_line

    with_model = ce or model is not None
    check_arguments(split, sequences, with_model, trust_remote_code)
    filtered = filtered_runs(runs) if all_rows else set()
    keep_freed_memory()
    console = Console(stderr=True)
    for run in runs:
        # Where there is no terminal, a bar would leave an empty line.
        with Progress(
            *_columns(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar:
            options: dict[str, Any] = {
                "store": store,
                "split": split,
                "rows": rows,
                "all_rows": run in filtered,
                "ce": ce,
                "model": model,
                "sequences": sequences,
                "trust_remote_code": trust_remote_code,
                "device": device,
                "tell": as_line,
                "progress": _Shown(bar, run),
            }
            if checkpoints:
                kept = evaluate_checkpoints(run, **options)
                records: tuple[BaseModel, ...] = kept
                shown = [over_training(run, kept)]
            else:
                record = evaluate(run, **options)
                records = (record,)
                shown = tables(record)
        if as_json:
            for one in records:
                typer.echo(one.model_dump_json())
            continue
        for table in shown:
            Console().print(table)


def calibrate_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, imported ones too."),
    ],
    store: OtherStore = None,
    l0: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Mean active latents per row.",
            show_default="k or target_l0 of the run",
        ),
    ] = None,
    all_rows: AllRows = False,
    device: Device = "cpu",
) -> None:
    """Set the thresholds of trained SAEs so that held-out rows have the wanted L0.

    Training ends with this; it is for imported SAEs, another store, or another L0.
    """
    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.evaluation.calibrate import calibrate, filtered_runs
    from trainer.runs.notes import as_line

    # Of all runs before the first is changed, so that a mistake changes none.
    filtered = filtered_runs(runs) if all_rows else set()
    keep_freed_memory()
    for run in runs:
        reached = calibrate(
            run,
            l0=l0,
            store=store,
            all_rows=run in filtered,
            device=device,
            tell=as_line,
        )
        typer.echo(
            f"{run}: thresholds set for an L0 of {reached:g}; next: trainer eval {run}"
        )


class _Shown:
    """Shows the progress of one evaluation as a bar."""

    def __init__(self, bar: Any, run: str) -> None:
        self._bar = bar
        self._run = run
        self._task = bar.add_task(f"evaluating {run}", total=None)

    def __call__(self, phase: Phase, done: int, total: int) -> None:
        what = "evaluating" if phase == "rows" else "language model,"
        self._bar.update(
            self._task, description=f"{what} {self._run}", completed=done, total=total
        )


def _columns() -> list[Any]:
    """Return the columns of a bar in which a long path leaves room for the figures."""
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        TaskProgressColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Description(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.description, overflow="ellipsis", no_wrap=True)

    return [
        Description(),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    ]
