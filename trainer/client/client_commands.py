"""The commands that ask a training service: submit, runs, logs, cancel and resume.

Importing this loads typer only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actstore.console.cli_options import AsJson, one_of
from trainer.client.client_output import (
    print_json,
    say,
    show_changed,
    show_estimate,
    show_event,
    show_runs,
)

if TYPE_CHECKING:
    from schemas.service import ServiceRun
    from trainer.client.service_client import ServiceClient

PANEL = "The service"
STATES = ("queued", "running", "completed", "failed", "cancelled")

Service = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="URL of the service.",
        show_default="$ACTSTORE_SERVICE",
        rich_help_panel=PANEL,
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A file with your token.",
        show_default="the token in $ACTSTORE_TOKEN",
        rich_help_panel=PANEL,
    ),
]
RunId = Annotated[
    str, typer.Argument(metavar="ID", help="A run's id, as `trainer runs` tells it.")
]


def submit_command(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A YAML file with a TrainSpec or a SweepSpec."
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the run's folder, or of the sweep's.",
            show_default="the service's choice",
        ),
    ] = None,
    priority: Annotated[
        int,
        typer.Option(metavar="N", help="Runs of a higher one come first: -100 to 100."),
    ] = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Tell what it would take; submit nothing."),
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Tell what happens until all have ended; exit 1 where one failed.",
        ),
    ] = False,
    service: Service = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Submit a run, or the runs of a sweep, to a training service."""
    from actstore.errors import SpecError

    if dry_run and follow:
        raise SpecError("--follow: a dry run submits nothing that could be followed")
    if dry_run and priority:
        raise SpecError("--priority: it changes nothing of a dry run; leave it out")
    with _client(service, token_file) as client:
        if dry_run:
            show_estimate(client.estimate(spec, name=name), as_json)
            return
        runs = client.submit(spec, name=name, priority=priority)
        if as_json and not follow:
            print_json(runs)
        elif not as_json:
            for run in runs:
                say(f"{run.id}  {run.name}  {run.state}")
        if follow:
            _follow(client, runs, as_json)


def runs_command(
    *,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help=f"In this state: {', '.join(STATES)}. May be given again.",
            show_default="any",
            autocompletion=one_of(*STATES),
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This user's.", show_default="everybody's"),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This sweep's.", show_default="any"),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="With it in their name, sweep or user.",
            show_default="any",
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(metavar="N", min=1, help="The newest so many.")
    ] = 50,
    service: Service = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a training service, newest first."""
    from itertools import islice

    with _client(service, token_file) as client:
        every = client.runs(
            tuple(state or ()),  # type: ignore[arg-type]
            user=user,
            sweep=sweep,
            text=text,
        )
        runs = list(islice(every, most))
        has_more = len(runs) == most and next(every, None) is not None
    if as_json:
        print_json(runs)
    elif runs:
        show_runs(runs)
    else:
        typer.echo("no such runs", err=True)
    if has_more:
        typer.echo(f"note: there are more than {most} (--most)", err=True)


def logs_command(
    run: RunId,
    *,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the run has ended."),
    ] = False,
    service: Service = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell what happened to a run of a training service."""
    with _client(service, token_file) as client:
        for event in client.events(run, follow=follow):
            show_event(event, None, as_json)


def cancel_command(
    run: RunId,
    *,
    service: Service = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a run of a training service; one in training is saved first."""
    with _client(service, token_file) as client:
        show_changed(client.cancel(run), as_json)


def resume_command(
    run: RunId,
    *,
    service: Service = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Queue a run again that was cancelled or has failed; it goes on where it was."""
    with _client(service, token_file) as client:
        show_changed(client.resume(run), as_json)


def _client(service: str | None, token_file: str | None) -> ServiceClient:
    from trainer.client.service_client import ServiceClient

    return ServiceClient(service, token_file=token_file)


def _follow(client: ServiceClient, runs: list[ServiceRun], as_json: bool) -> None:
    """Tell what happens to runs, one after the other; exit 1 where one has failed."""
    completed = []
    for run in runs:
        kind = ""
        for event in client.events(run.id):
            show_event(event, run.name if len(runs) > 1 else None, as_json)
            kind = event.kind
        completed.append(kind == "completed")
    if not all(completed):
        raise typer.Exit(1)
