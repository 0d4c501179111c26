"""The commands `trainer analyze ...`. Importing this loads typer only."""

from __future__ import annotations

import typer

from actstore.console.cli_options import Commands
from trainer.analysis import truth_commands

analyze = typer.Typer(
    name="analyze",
    cls=Commands,
    help="Compute a table of the evidence, and draw its figures.",
    no_args_is_help=True,
)
truth_commands.add_to(analyze)
