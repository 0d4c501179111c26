"""The command `trainer report`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import TrustAgain
from trainer.runs.run_options import OtherStore


def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run folders, evaluated (`trainer eval`) or not."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="URL", help="The HTML file: a path or any fsspec URL."),
    ] = "report.html",
    store: OtherStore = None,
    latents: Annotated[
        int, typer.Option(metavar="N", min=0, help="Latents shown with their contexts.")
    ] = 12,
    title: Annotated[
        str, typer.Option(metavar="TEXT", help="Of the page.")
    ] = "Sparse autoencoders across layers",
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What stands below the title.",
            show_default="nothing more",
        ),
    ] = None,
    evidence: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FOLDER",
            help="Also show what `trainer analyze ... --out FOLDER` found; repeatable.",
            show_default="none",
        ),
    ] = None,
    trust_remote_code: TrustAgain = False,
) -> None:
    """One self-contained page about one or more runs."""
    from rich.console import Console

    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.reports.report import report
    from trainer.runs.notes import as_line

    keep_freed_memory()
    # Told only after the status line is gone, which they would break up.
    notes: list[str] = []
    with Console(stderr=True).status("writing the report"):
        report(
            runs,
            out,
            store=store,
            latents=latents,
            title=title,
            text=text,
            evidence=evidence or (),
            trust_remote_code=trust_remote_code,
            tell=notes.append,
        )
    for note in notes:
        as_line(note)
    typer.echo(f"report: {out}")
