"""The command `trainer export`. Importing this loads typer only."""

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
    """Write a trained SAE for others, with a model card.

    A push to the hub takes its token from HF_TOKEN.
    """
    # Only now: torch takes seconds, which `--help` and a typing mistake need not wait.
    from trainer.exports.export import export

    where = export(run, out, to, store, private)
    typer.echo(f"export: {where}")
