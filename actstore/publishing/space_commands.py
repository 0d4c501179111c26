"""The commands `actstore du`, `gc`, `rm` and `unpublish`.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import AsJson, one_of
from actstore.console.printable import one_line, printable


def du_command(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="A store, its name, or a folder with stores.",
            show_default="what is published",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what takes how many bytes: a store's sites, or the stores below a URL."""
    from actstore.publishing.usage import published_usage, usage

    used = published_usage() if url is None else usage(url)
    if as_json:
        import json

        typer.echo(json.dumps([one._asdict() for one in used], indent=1))
        return
    total = sum(one.bytes for one in used)
    for name, n_bytes in [*((one.name, one.bytes) for one in used), ("total", total)]:
        typer.echo(one_line(f"{n_bytes / 1e6:14,.1f} MB  {name}"))


def gc_command(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A store, its name, or a folder with stores."
        ),
    ],
    older_than: Annotated[
        float,
        typer.Option(
            metavar="DAYS", help="Days since anything was written there; 1 or more."
        ),
    ] = 1.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is found.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show harvests, copies, uploads and temporary files that were begun and left.

    With --delete they are removed. Finished stores stay, and so do files of others.
    """
    from actstore.publishing.leftovers import leftovers

    found = leftovers(url, older_than=older_than, delete=delete)
    if as_json:
        import json

        typer.echo(json.dumps([one._asdict() for one in found], indent=1))
        return
    for one in found:
        done = "removed" if delete else "would go"
        verb = done if one.removable else "stays"
        age = "age not known" if one.days is None else f"{one.days:.1f} days"
        note = f"; {one.note}" if one.note else ""
        line = f"{one.url}  {one.what}, {one.bytes / 1e6:,.1f} MB, {age}{note}"
        typer.echo(one_line(f"{verb:<9} {line}"))
    n_old = sum(one.removable for one in found)
    if not n_old:
        typer.echo("nothing is old enough" if found else "nothing was left", err=True)
    elif not delete:
        typer.echo("give --delete to remove what would go", err=True)


def rm_command(
    store: Annotated[
        str,
        typer.Argument(metavar="URL", help="A finished store, or its name."),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a store: its objects, and its records in the catalog.

    It is refused while a published run refers to the store. Files in its folder that
    are not its own stay.
    """
    import json

    from actstore.publishing.remove import carry_out, plan_removal

    planned = plan_removal(store, None)
    removal = planned.removal
    names = f", published as {', '.join(removal.names)}" if removal.names else ""
    what = printable(
        f"{removal.url}: {removal.objects:,} objects, {removal.bytes / 1e6:,.1f}"
        f" MB{names}"
    )
    if not yes:
        _ask(what)
    carry_out(planned, lambda _: None)
    if as_json:
        typer.echo(json.dumps(removal._asdict()))
        return
    typer.echo(f"removed {what}")


def _ask(what: str) -> None:
    """Ask whether something is to be removed; end the command unless it is.

    Raises:
        SpecError: Nobody can answer.
    """
    import sys

    from actstore.errors import SpecError

    if not sys.stdin.isatty():
        raise SpecError(f"{what}: to remove it, answer in a terminal, or give --yes")
    if not typer.confirm(f"remove {what}?", err=True):
        typer.echo("nothing was removed", err=True)
        raise typer.Exit(1)


def unpublish_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG]",
            help="The name with all its versions, or one tag or content id of it.",
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="store or run.",
            show_default="what has the name",
            autocompletion=one_of("store", "run"),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a name out of the catalog; the store or run stays where it is."""
    from actstore.publishing.unpublish import unpublish

    # `unpublish` itself refuses another kind
    gone = unpublish(name, kind=kind)  # type: ignore[arg-type]
    if as_json:
        import json

        typer.echo(json.dumps(gone))
        return
    for one in gone:
        typer.echo(f"unpublished {one}")
