"""The commands `trainer stitch ...`. Importing this loads typer only."""

from __future__ import annotations

import typer

from actstore.console.cli_options import Commands

stitch = typer.Typer(
    name="stitch",
    cls=Commands,
    help="Compare SAEs of different sizes, and stitch them together.",
    no_args_is_help=True,
)
