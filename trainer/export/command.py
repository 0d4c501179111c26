"""`trainer export`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer


def export_command(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    out: Annotated[str, typer.Argument(help="A new folder: a path, any fsspec URL, or hf://user/name.")],
    to: Annotated[str, typer.Option(help="saelens (a folder per site), or safetensors (our own format).")] = "saelens",
    store: Annotated[
        str | None, typer.Option(help="Where the run's store lies now, if it has moved; adds the corpus.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="hf:// only: a new repository is private.")] = False,
) -> None:
    """Write a trained SAE for others, with a model card; a push to the hub takes its token from HF_TOKEN."""
    from trainer.export.export import export_run

    where = export_run(run, out, to, store, private)
    typer.echo(f"export: {where}")
