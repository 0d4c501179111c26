"""The command line `actstore`: harvest or import a store, look at it, check it, copy.

Importing this loads nothing heavy, so that `--help` comes at once; the commands import
what they need when they run.
"""

from __future__ import annotations

import typer

from actstore.console import cli_errors
from actstore.console.cli_options import (
    Command,
    Commands,
    command_for,
    with_version,
)
from actstore.harvesting import harvest_options, sites_command
from actstore.harvesting.harvest_command import extend_command, harvest_command
from actstore.harvesting.plan_command import plan_command
from actstore.importing import toy_command
from actstore.importing.import_command import import_command
from actstore.inspect.diff_command import DiffCommand, diff_command
from actstore.inspect.inspect_commands import (
    doctor_command,
    info_command,
    norms_command,
)
from actstore.publishing.list_commands import ls_command, runs_command
from actstore.publishing.publish_command import publish_command
from actstore.publishing.space_commands import (
    du_command,
    gc_command,
    rm_command,
    unpublish_command,
)
from actstore.recomputing.verify_command import verify_command
from actstore.sharing.copy_command import cp_command, pull_command, push_command

app = typer.Typer(
    name="actstore",
    cls=Commands,
    help="Harvest a language model's activations once, keep them well, share them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(with_version)

# The help of these tells the defaults of their spec's fields.
HarvestCommand = command_for(
    harvest_options.SCHEMA,
    harvest_options.FIELDS,
    not_offered=harvest_options.NOT_OFFERED,
)
SitesCommand = command_for(sites_command.SCHEMA, sites_command.FIELDS)
ToyCommand = command_for(toy_command.SCHEMA, toy_command.FIELDS)

# In the order in which `--help` lists them.
app.command("harvest", cls=HarvestCommand)(harvest_command)
app.command("plan", cls=HarvestCommand)(plan_command)
app.command("sites", cls=SitesCommand)(sites_command.sites_command)
app.command("extend", cls=Command)(extend_command)
app.command("import", cls=Command)(import_command)
app.command("toy", cls=ToyCommand)(toy_command.toy_command)
app.command("info", cls=Command)(info_command)
app.command("norms", cls=Command)(norms_command)
app.command("verify", cls=Command)(verify_command)
app.command("diff", cls=DiffCommand)(diff_command)
app.command("ls", cls=Command)(ls_command)
app.command("runs", cls=Command)(runs_command)
app.command("publish", cls=Command)(publish_command)
app.command("unpublish", cls=Command)(unpublish_command)
app.command("rm", cls=Command)(rm_command)
app.command("du", cls=Command)(du_command)
app.command("gc", cls=Command)(gc_command)
app.command("doctor", cls=Command)(doctor_command)
app.command("cp", cls=Command)(cp_command)
app.command("push", cls=Command)(push_command)
app.command("pull", cls=Command)(pull_command)


def main() -> None:
    """Run the command line; errors become messages and exit codes."""
    cli_errors.run(app)
