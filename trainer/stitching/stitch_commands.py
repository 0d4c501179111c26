"""The commands `trainer stitch ...`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import Command, Commands, Device, one_of
from trainer.analysis.show_evidence import AsJson, Out
from trainer.runs.run_options import OtherStore

stitch = typer.Typer(
    name="stitch",
    cls=Commands,
    help="Compare SAEs of different sizes, and stitch them together.",
    no_args_is_help=True,
)

Small = Annotated[str, typer.Argument(metavar="A", help="The run of the small SAE.")]
Large = Annotated[str, typer.Argument(metavar="B", help="The run of the large SAE.")]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")]
SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="SITE",
        help="The site.",
        show_default="the only one that the runs share",
    ),
]
Threshold = Annotated[
    float,
    typer.Option(metavar="COSINE", help="Cosine above which two latents are similar."),
]
Split = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="held_out or train.",
        autocompletion=one_of("held_out", "train"),
    ),
]
MostRows = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT", help="Rows at most: 50k, 1M.", show_default="all of them"
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of what is drawn.")]


@stitch.command("compare", cls=Command)
def compare_command(
    a: Small,
    b: Large,
    site: SiteOption = None,
    threshold: Threshold = 0.7,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """For each latent of either SAE, the most similar one of the other."""
    from trainer.analysis.show_evidence import show
    from trainer.stitching.compare import compute_stitch_compare

    table = compute_stitch_compare(a, b, site=site, threshold=threshold, seed=seed)
    show(table, out, as_json)


@stitch.command("add", cls=Command)
def add_command(
    a: Small,
    b: Large,
    site: SiteOption = None,
    threshold: Threshold = 0.7,
    store: OtherStore = None,
    split: Split = "held_out",
    rows: MostRows = None,
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What each latent of B does to A's MSE: alone, by class, and all together.

    With --json it prints the three tables, one a line.
    """
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.add import compute_stitch_add, compute_stitch_classes
    from trainer.stitching.cumulative import compute_stitch_cumulative

    added = compute_stitch_add(
        a,
        b,
        site=site,
        threshold=threshold,
        store=store,
        split=split,
        rows=rows,
        device=device,
        tell=as_line,
    )
    together = compute_stitch_cumulative(
        a,
        b,
        site=site,
        threshold=threshold,
        store=store,
        split=split,
        rows=rows,
        device=device,
        # What there is to tell has been told.
        tell=lambda _: None,
    )
    for table in (added, compute_stitch_classes(added), together):
        show(table, out, as_json)


@stitch.command("swap", cls=Command)
def swap_command(
    a: Small,
    b: Large,
    site: SiteOption = None,
    threshold: Threshold = 0.7,
    store: OtherStore = None,
    split: Split = "held_out",
    rows: MostRows = None,
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What swapping each group of similar latents does to A's MSE and L0."""
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.swap import compute_stitch_swap

    table = compute_stitch_swap(
        a,
        b,
        site=site,
        threshold=threshold,
        store=store,
        split=split,
        rows=rows,
        device=device,
        tell=as_line,
    )
    show(table, out, as_json)


@stitch.command("interpolate", cls=Command)
def interpolate_command(
    a: Small,
    b: Large,
    site: SiteOption = None,
    threshold: Threshold = 0.7,
    order: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The cosine that a swap has its place by: max or mean of its pairs.",
            autocompletion=one_of("max", "mean"),
        ),
    ] = "max",
    points: Annotated[
        int, typer.Option(metavar="N", min=1, help="Points on the way, about.")
    ] = 40,
    store: OtherStore = None,
    split: Split = "held_out",
    rows: MostRows = None,
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """MSE, L0 and size on the way from A to B, latents added and then swapped."""
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.interpolate import compute_stitch_interpolate

    table = compute_stitch_interpolate(
        a,
        b,
        site=site,
        threshold=threshold,
        order=order,
        points=points,
        store=store,
        split=split,
        rows=rows,
        device=device,
        tell=as_line,
    )
    show(table, out, as_json)


@stitch.command("frankenstein", cls=Command)
def frankenstein_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, the smallest SAE first."),
    ],
    out: Annotated[str, typer.Option(metavar="URL", help="The folder of the new run.")],
    site: SiteOption = None,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="COSINE",
            help="A latent is taken if its cosine with all so far is below it.",
        ),
    ] = 0.7,
    rows: Annotated[
        str,
        typer.Option(
            metavar="COUNT",
            help="Rows on which the decoder is trained again; 0 leaves it as it is.",
        ),
    ] = "1M",
    lr: Annotated[
        float,
        typer.Option(metavar="NUMBER", help="Learning rate at the start of that."),
    ] = 1e-3,
    seed: Seed = 0,
    store: OtherStore = None,
    split: Split = "held_out",
    eval_rows: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Rows that the MSE is measured on, at most.",
            show_default="all of them",
        ),
    ] = None,
    device: Device = "cpu",
    evidence: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the table (JSON, Parquet, CSV) and its figure (SVG) into it.",
        ),
    ] = None,
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


@stitch.command("optimise", cls=Command)
def optimise_command(
    runs: Runs,
    site: SiteOption = None,
    store: OtherStore = None,
    split: Split = "held_out",
    rows: Annotated[
        str, typer.Option(metavar="COUNT", help="Rows at most: 2k, 10k.")
    ] = "2048",
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How much of the MSE is the encoder's: codes optimised at its L0 (slow)."""
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.optimise import compute_inference_time

    table = compute_inference_time(
        runs,
        site=site,
        store=store,
        split=split,
        rows=rows,
        device=device,
        tell=as_line,
    )
    show(table, out, as_json)


@stitch.command("co-occurrence", cls=Command)
def cooccurrence_command(
    a: Small,
    b: Large,
    site: SiteOption = None,
    threshold: Threshold = 0.7,
    seed: Seed = 0,
    store: OtherStore = None,
    split: Split = "held_out",
    rows: MostRows = None,
    device: Device = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Whether the latents of B that a latent of A splits into fire together."""
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.cooccurrence import compute_stitch_cooccurrence

    table = compute_stitch_cooccurrence(
        a,
        b,
        site=site,
        threshold=threshold,
        seed=seed,
        store=store,
        split=split,
        rows=rows,
        device=device,
        tell=as_line,
    )
    show(table, out, as_json)
