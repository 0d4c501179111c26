"""The command line `trainer`: train SAEs, evaluate, show and exchange them.

Heavy imports are inside the commands, so that help comes at once.
"""

from __future__ import annotations

import typer

from actstore.console import cli_errors
from actstore.console.cli_options import Command, Commands, with_version
from trainer.analysis.analyze_commands import analyze
from trainer.client.client_commands import (
    cancel_command,
    logs_command,
    resume_command,
    runs_command,
    submit_command,
)
from trainer.evaluation.eval_command import calibrate_command, eval_command
from trainer.explorer.explore_command import explore_command
from trainer.exports.export_command import export_command
from trainer.imports.import_sae_command import import_command
from trainer.reports.report_command import report_command
from trainer.service.serve_command import serve_command
from trainer.service.token_command import token
from trainer.stitching.stitch_commands import stitch
from trainer.training.train_command import sweep_command, train_command
from trainer.training.train_options import TrainCommand

app = typer.Typer(
    name="trainer",
    cls=Commands,
    help="Train sparse autoencoders from activation stores, and show what they do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(with_version)
app.command("train", cls=TrainCommand)(train_command)
app.command("sweep", cls=Command)(sweep_command)
app.command("eval", cls=Command)(eval_command)
app.command("calibrate", cls=Command)(calibrate_command)
app.add_typer(analyze, name="analyze")
app.command("report", cls=Command)(report_command)
app.command("explore", cls=Command)(explore_command)
app.command("export", cls=Command)(export_command)
app.command("import", cls=Command)(import_command)
app.add_typer(stitch, name="stitch")
app.command("submit", cls=Command)(submit_command)
app.command("runs", cls=Command)(runs_command)
app.command("logs", cls=Command)(logs_command)
app.command("cancel", cls=Command)(cancel_command)
app.command("resume", cls=Command)(resume_command)
app.command("serve", cls=Command)(serve_command)
app.add_typer(token, name="token")


def main() -> None:
    """Run the command line; the console script `trainer` calls this."""
    cli_errors.run(app)
