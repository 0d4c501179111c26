"""The options of commands that can give their work to an engine.

Importing this loads typer only.
"""

from __future__ import annotations

from typing import Annotated

from actstore.console.cli_options import one_of, panel_option

PANEL = "On many machines"

Engine = Annotated[
    str | None,
    panel_option(
        PANEL,
        metavar="ENGINE",
        help=(
            "What places the work: ray (on this machine), ray:ADDRESS (a cluster), or"
            " slurm."
        ),
        show_default="none: this process does it",
        autocompletion=one_of("ray", "ray:auto", "slurm", "slurm:local"),
    ),
]
Workers = Annotated[
    int | None,
    panel_option(
        PANEL,
        metavar="N",
        min=1,
        help="With --engine: how many pieces of work run at once.",
        show_default="as many as there is room for",
    ),
]
Partition = Annotated[
    str | None,
    panel_option(
        PANEL,
        metavar="NAME",
        help="Slurm's partition.",
        show_default="the cluster's own",
    ),
]
Time = Annotated[
    str | None,
    panel_option(
        PANEL,
        metavar="TIME",
        help="How long a job of Slurm's may take: 90 (minutes), 8:00:00, 1-12:00:00.",
        show_default="the partition's own",
    ),
]
Account = Annotated[
    str | None,
    panel_option(
        PANEL,
        metavar="NAME",
        help="Slurm's account that jobs are charged to.",
        show_default="your own",
    ),
]


def slurm_options(
    partition: str | None, time: str | None, account: str | None
) -> dict[str, str]:
    """Return the options of Slurm that were given, by name."""
    options = {"partition": partition, "time": time, "account": account}
    return {key: value for key, value in options.items() if value is not None}
