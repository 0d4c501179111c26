"""`actstore`: harvest or import a store, look at it, check it. Heavy imports are inside
the commands.
"""

from __future__ import annotations

import typer

from actstore.console import cli_errors
from actstore.console.cli_options import Command, command_for, with_version
from actstore.harvesting.harvest_command import extend_command, harvest_command
from actstore.harvesting.harvest_options import FIELDS, SCHEMA
from actstore.harvesting.plan_command import plan_command
from actstore.harvesting.sites_command import FIELDS as SITES_FIELDS
from actstore.harvesting.sites_command import SCHEMA as SITES_SCHEMA
from actstore.harvesting.sites_command import sites_command
from actstore.importing.import_command import import_command
from actstore.inspect.inspect_commands import (
    doctor_command,
    info_command,
    ls_command,
    norms_command,
    verify_command,
)

app = typer.Typer(
    name="actstore",
    help="Harvest a language model's activations once, keep them well, share them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(with_version)
Harvest = command_for(SCHEMA, FIELDS)
app.command("harvest", cls=Harvest)(harvest_command)
app.command("plan", cls=Harvest)(plan_command)
app.command("sites", cls=command_for(SITES_SCHEMA, SITES_FIELDS))(sites_command)
app.command("extend", cls=Command)(extend_command)
app.command("import", cls=Command)(import_command)
app.command("info", cls=Command)(info_command)
app.command("norms", cls=Command)(norms_command)
app.command("verify", cls=Command)(verify_command)
app.command("ls", cls=Command)(ls_command)
app.command("doctor", cls=Command)(doctor_command)


def main() -> None:
    """The console script."""
    cli_errors.run(app)
