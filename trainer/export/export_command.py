"""`trainer export`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import one_of


def export_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.")],
    out: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="A new folder: a path, any fsspec URL, or hf://user/name.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="saelens (a folder per site), or safetensors (our own format).",
            autocompletion=one_of("saelens", "safetensors"),
        ),
    ] = "saelens",
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the run's store lies now; adds the corpus.",
            show_default="where it was",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="hf:// only: a new repository is private.")
    ] = False,
) -> None:
    """Write a trained SAE for others, with a model card; a push to the hub takes its
    token from HF_TOKEN.
    """
    from trainer.export.export import export_run

    where = export_run(run, out, to, store, private)
    typer.echo(f"export: {where}")
