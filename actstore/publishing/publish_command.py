"""The command `actstore publish`.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import AsJson


def publish_command(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="A finished store, or a finished run."),
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG]",
            help="The name that opens it; without a tag, the tag is `latest`.",
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Who publishes it.",
            show_default="your name on this machine",
        ),
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Record nobody's name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a store or run in the team's catalog, so that its name opens it.

    Publishing the same again changes nothing; other content under the same name is
    another version of it.
    """
    from actstore.publishing.publish import publish

    published = publish(url, name, by=by, anonymous=anonymous)
    if published.note is not None:
        typer.echo(f"note: {published.note}", err=True)
    if as_json:
        typer.echo(published.record.to_json(), nl=False)
        return
    before = " (it was published before)" if published.was_there else ""
    typer.echo(f"{published.name}  {published.record.content_id[:12]}{before}")
