"""The commands `trainer analyze ...`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import Command, Commands
from trainer.analysis import run_commands, truth_commands
from trainer.analysis.show_evidence import AsJson, Out, show

analyze = typer.Typer(
    name="analyze",
    cls=Commands,
    help="Compute a table of the evidence, and draw its figures.",
    no_args_is_help=True,
)
run_commands.add_to(analyze)

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")]


@analyze.command("table", cls=Command)
def table_command(
    runs: Runs,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Size, L0, MSE and recovered cross-entropy of evaluated runs."""
    from trainer.analysis.sae_table import compute_sae_table

    show(compute_sae_table(runs), out, as_json)


truth_commands.add_to(analyze)


@analyze.command("over-training", cls=Command)
def over_training_command(
    runs: Runs,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="SITE",
            help="Only this site, or pooled; may be given again.",
            show_default="all of them",
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Metrics over training, of the SAEs that `trainer eval --checkpoints` measured."""
    from trainer.analysis.over_training import compute_over_training

    show(compute_over_training(runs, sites), out, as_json)


@analyze.command("density", cls=Command)
def density_command(runs: Runs, out: Out = None, as_json: AsJson = False) -> None:
    """How often latents fire over training, in a sliding window of its rows."""
    from trainer.analysis.density_over_training import compute_density_over_training

    show(compute_density_over_training(runs), out, as_json)
