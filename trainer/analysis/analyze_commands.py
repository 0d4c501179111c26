"""The commands `trainer analyze ...`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import Command, Commands
from trainer.analysis import run_commands, truth_commands
from trainer.analysis.show_evidence import AsJson, Out

analyze = typer.Typer(
    name="analyze",
    cls=Commands,
    help="Compute a table of the evidence, and draw its figures.",
    no_args_is_help=True,
)
run_commands.add_to(analyze)


@analyze.command("table", cls=Command)
def table_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Size, L0, MSE and recovered cross-entropy of evaluated runs."""
    from trainer.analysis.sae_table import compute_sae_table
    from trainer.analysis.show_evidence import show

    show(compute_sae_table(runs), out, as_json)


truth_commands.add_to(analyze)
