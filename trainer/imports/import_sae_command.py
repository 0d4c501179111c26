"""`trainer import`. Importing this loads typer only."""

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
    from actstore.store.open_store import open as open_store
    from trainer.imports.import_sae import import_sae

    made = import_sae(
        folder, out, site, None if store is None else open_store(store), scale
    )
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(
        f"run: {out} ({made.record.sae.kind}, {made.record.n_latents} latents,"
        f" {made.record.sites[0]})"
    )
