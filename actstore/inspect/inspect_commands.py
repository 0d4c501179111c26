"""The commands `actstore info`, `norms` and `doctor`.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actstore.console.cli_options import AsJson

if TYPE_CHECKING:
    from rich.table import Table

Url = Annotated[
    str, typer.Argument(metavar="URL", help="A store: a folder or any fsspec URL.")
]
WIDTH = 120  # columns of a table that goes into a pipe or a file


def info_command(
    url: Url,
    as_json: AsJson = False,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", help="How well its streams mix, at several budgets."),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --shuffle: rows per batch.",
            show_default="4096",
        ),
    ] = None,
) -> None:
    """Show what a store holds: model, corpus, sites, rows, bytes, content id."""
    from actstore.errors import SpecError
    from actstore.inspect.store_info import shuffle_table
    from actstore.store.description import describe
    from actstore.store.open_store import open as open_store

    if batch is not None and not shuffle:
        raise SpecError("--batch is of --shuffle; give that too, or leave it out")
    if as_json and shuffle:
        raise SpecError(
            "--shuffle prints a table, and --json the manifest; give one of them"
        )
    store = open_store(url)
    if shuffle:
        print_table(shuffle_table(store, 4096 if batch is None else batch))
        return
    if as_json:
        typer.echo(store.manifest.to_json(), nl=False)
        return
    for name, value in describe(store):
        typer.echo(f"{name:<12} {value}")


def norms_command(
    url: Url,
    as_json: AsJson = False,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw norms by layer: a page, or an SVG if the name ends in .svg.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Show the norms of every site: mean, quantiles, outliers and non-finite rows."""
    from actstore.inspect.store_info import norm_table
    from actstore.store.norms_of_sites import write_norms
    from actstore.store.open_store import open as open_store

    store = open_store(url)
    if as_json:
        import json

        # JSON has no NaN: to_json writes a string for it
        every = [json.loads(norms.to_json()) for norms in store.manifest.norms]
        typer.echo(json.dumps(every, indent=1))
    else:
        print_table(norm_table(store))
    if plot is not None:
        write_norms(store, plot)
        typer.echo(f"plot: {plot}", err=True)


def print_table(table: Table) -> None:
    """Print a table on the terminal.

    What stands in it may be others': `[red]` and `:smile:` are no markup.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        # a pipe or a file has no width of its own, and 80 columns cut numbers off
        console.width = WIDTH
    console.print(table)


def doctor_command(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="Where a store shall lie: it is written to and cleaned up.",
            show_default="no place is tried",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, GPU, memory; with a URL, free space and a round trip with throughput.

    Exit code 1 if a check fails.
    """
    from actstore.inspect.doctor import examine

    # Each line is shown when its check is done: some take seconds.
    checks = []
    for check in examine(url):
        checks.append(check)
        if not as_json:
            typer.echo(f"{check.status:<5} {check.name:<18} {check.text}")
    if as_json:
        import json

        typer.echo(json.dumps([check._asdict() for check in checks], indent=1))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
