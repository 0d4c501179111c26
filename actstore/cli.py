"""`actstore`: harvest or import a store, look at it, check it. Heavy imports are inside the commands."""

from __future__ import annotations

import typer

from actstore import boundary
from actstore.harvesting.command import extend_command, harvest_command
from actstore.harvesting.plan_command import plan_command
from actstore.importing.command import import_command
from actstore.share.command import doctor_command, info_command, ls_command, norms_command, verify_command

app = typer.Typer(
    name="actstore",
    help="Harvest a language model's activations once, keep them well, share them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("harvest")(harvest_command)
app.command("plan")(plan_command)
app.command("extend")(extend_command)
app.command("import")(import_command)
app.command("info")(info_command)
app.command("norms")(norms_command)
app.command("verify")(verify_command)
app.command("ls")(ls_command)
app.command("doctor")(doctor_command)


def main() -> None:
    """The console script."""
    boundary.run(app)
