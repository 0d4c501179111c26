"""The command `trainer import`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer


def import_command(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help=(
                "A folder of SAELens or dictionary_learning: a path or any fsspec URL."
            ),
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="URL", help="The run's folder that is made.")
    ],
    site: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            help="The store's name of its site.",
            show_default="the folder's own",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The store it will be evaluated on; checked for site and d.",
            show_default="none",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help=(
                "The factor of its input, where the folder wants one and does not"
                " hold it."
            ),
            show_default="from the store",
        ),
    ] = None,
) -> None:
    """Make a run of a published SAE, so that `trainer eval` and the rest take it."""
    # Only now: torch takes seconds, which `--help` and a typing mistake need not wait.
    from trainer.imports.import_sae import import_sae
    from trainer.runs.notes import as_line

    imported = import_sae(folder, out, site, store, scale)
    for note in imported.notes:
        as_line(note)
    record = imported.record
    typer.echo(
        f"run: {out} ({record.sae.kind}, {record.n_latents} latents, {record.sites[0]})"
    )
