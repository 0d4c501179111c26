"""The command `trainer stitch frankenstein`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import Device
from trainer.analysis.show_evidence import AsJson
from trainer.runs.run_options import OtherStore
from trainer.stitching.stitch_options import Seed, SiteOption, Split

Smallest = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Run folders, the smallest SAE first."),
]
NewRun = Annotated[
    str, typer.Option("--out", metavar="URL", help="The folder of the new run.")
]
NovelBelow = Annotated[
    float,
    typer.Option(
        metavar="COSINE",
        help="A latent is taken if its cosine with all so far is below it.",
    ),
]
RetrainRows = Annotated[
    str,
    typer.Option(
        metavar="COUNT",
        help="Rows on which the decoder is trained again; 0 leaves it as it is.",
    ),
]
LearningRate = Annotated[
    float, typer.Option(metavar="NUMBER", help="Learning rate at the start of that.")
]
EvalRows = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT",
        help="Rows that the MSE is measured on, at most.",
        show_default="all of them",
    ),
]
Evidence = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Write the table (JSON, Parquet, CSV) and its figure (SVG) into it.",
    ),
]


def frankenstein_command(
    runs: Smallest,
    out: NewRun,
    site: SiteOption = None,
    threshold: NovelBelow = 0.7,
    rows: RetrainRows = "1M",
    lr: LearningRate = 3e-3,
    seed: Seed = 0,
    store: OtherStore = None,
    split: Split = "held_out",
    eval_rows: EvalRows = None,
    device: Device = "cpu",
    evidence: Evidence = None,
    as_json: AsJson = False,
) -> None:
    """Make a new run of what is novel in each of several, and retrain its decoder."""
    from rich.console import Console
    from rich.progress import Progress

    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.frankenstein import compute_stitch_frankenstein

    keep_freed_memory()
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("retraining the decoder", total=None)
        table = compute_stitch_frankenstein(
            runs,
            out,
            site=site,
            threshold=threshold,
            retrain=rows,
            lr=lr,
            seed=seed,
            store=store,
            split=split,
            rows=eval_rows,
            device=device,
            tell=as_line,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    show(table, evidence, as_json)
    if not as_json:
        typer.echo(f"it lies in {out}; next: trainer eval {out}")
