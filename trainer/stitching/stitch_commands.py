"""The commands `trainer stitch ...`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import Command, Commands, Device, one_of
from trainer.analysis.show_evidence import AsJson, Out
from trainer.runs.run_options import OtherStore
from trainer.stitching.frankenstein_command import frankenstein_command
from trainer.stitching.stitch_options import (
    Large,
    MostRows,
    Runs,
    Seed,
    SiteOption,
    Small,
    Split,
    Threshold,
)

stitch = typer.Typer(
    name="stitch",
    cls=Commands,
    help="Compare SAEs of different sizes, and stitch them together.",
    no_args_is_help=True,
)
stitch.command("frankenstein", cls=Command)(frankenstein_command)


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


@stitch.command("pairs", cls=Command)
def pairs_command(
    runs: Runs,
    site: SiteOption = None,
    threshold: Threshold = 0.7,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The share of novel latents of each of several SAEs in each other one.

    For sizes and seeds: how much do SAEs of one size differ, and of two sizes?
    """
    from trainer.analysis.show_evidence import show
    from trainer.stitching.pairs_of_runs import compute_stitch_pairs

    table = compute_stitch_pairs(runs, site=site, threshold=threshold, seed=seed)
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
    """Measure what each latent of B does to A's MSE: alone, by class, and all together.

    With --json it prints the three tables, one a line.
    """
    from trainer.analysis.show_evidence import show
    from trainer.runs.notes import as_line
    from trainer.stitching.add import compute_stitch_add
    from trainer.stitching.classes import compute_stitch_classes
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
    """Measure what swapping each group of similar latents does to A's MSE and L0."""
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
    """Measure how often the latents of B that one of A splits into fire together."""
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
