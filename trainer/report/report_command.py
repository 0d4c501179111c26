"""`trainer report`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import TrustAgain


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
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The store.",
            show_default="the one the runs were trained from",
        ),
    ] = None,
    latents: Annotated[
        int, typer.Option(metavar="N", min=0, help="Latents shown with their contexts.")
    ] = 12,
    title: Annotated[
        str, typer.Option(metavar="TEXT", help="Of the page.")
    ] = "Sparse autoencoders across layers",
    trust_remote_code: TrustAgain = False,
) -> None:
    """One self-contained page about one or more runs."""
    from rich.console import Console

    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.report.report import write_report

    keep_freed_memory()
    with Console(stderr=True).status("writing the report"):
        notes = write_report(
            runs, out, store, latents, title, trust_remote_code=trust_remote_code
        )
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"report: {out}")
