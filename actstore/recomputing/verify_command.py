"""The command `actstore verify`.

Importing this loads typer only, so that help comes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import AsJson, TrustAgain, panel_option
from actstore.inspect.inspect_commands import Url

if TYPE_CHECKING:
    from actstore.inspect.verify import Verified
    from actstore.recomputing.verify_deep import DeepVerified

# The panel of the options that go with --deep.
_DEEP = "With --deep"


def verify_command(
    url: Url,
    as_json: AsJson = False,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, help="Objects read at a time.")
    ] = 4,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Write bad zarr.json files anew, from the manifest."
        ),
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Then compute again: norms and statistics, and rows with the model.",
        ),
    ] = False,
    rows: Annotated[
        int | None,
        panel_option(
            _DEEP,
            metavar="N",
            min=0,
            help="Rows of each site to compute with the model; 0: load no model.",
            show_default="2048",
        ),
    ] = None,
    all_units: Annotated[
        bool,
        panel_option(
            _DEEP, "--all", help="Norms and statistics of all units, not of a sample."
        ),
    ] = False,
    seed: Annotated[
        int | None,
        panel_option(
            _DEEP,
            metavar="N",
            min=0,
            help="Which rows and units are looked at.",
            show_default="0",
        ),
    ] = None,
    model: Annotated[
        str | None,
        panel_option(
            _DEEP,
            metavar="NAME",
            help="Where the model lies now: a folder, or a hub name.",
            show_default="as the store names it",
        ),
    ] = None,
    device: Annotated[
        str | None,
        panel_option(
            _DEEP,
            metavar="DEVICE",
            help="Where the model runs: cpu, cuda, cuda:1, auto.",
            show_default="cpu",
        ),
    ] = None,
    trust_remote_code: TrustAgain = False,
) -> None:
    """Read every object of a store and name each bad one.

    An object is compared with its digest, or with what it follows from. With --deep
    what digests cannot tell is computed again: rows, norms, statistics, and a sample of
    the values with the language model.

    Exit code 1 if anything is wrong (that is not repaired).
    """
    from actstore.inspect.verify import verify
    from actstore.store.open_store import open as open_store

    options: dict[str, Any] = {
        "rows": rows,
        "all_units": all_units or None,
        "seed": seed,
        "model": model,
        "device": device,
        "trust_remote_code": trust_remote_code or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    _check_deep(deep, given)
    store = open_store(url)
    with _progress("verifying") as show:
        result = verify(store, threads, show, repair=repair)
    if not as_json:
        # Before the model is loaded, which may fail.
        for problem in result.problems:
            typer.echo(problem)
        for key in result.repaired:
            typer.echo(f"repaired {store.url}/{key}")
        typer.echo(
            f"{result.objects} objects, {result.bytes:,} bytes:"
            f" {len(result.problems)} bad"
        )
    found = None
    if deep:
        from actstore.recomputing.verify_deep import verify_deep

        with _progress("computing again") as show:
            found = verify_deep(store, progress=show, **given)
        if not as_json:
            _print_deep(found)
    if as_json:
        typer.echo(_json(result, found))
    if result.problems or (found is not None and found.problems):
        raise typer.Exit(1)


def _json(result: Verified, found: DeepVerified | None) -> str:
    """Return what was found as JSON."""
    import json

    from actstore.console.cli_output import json_number

    fields = result._asdict()
    if found is not None:
        fields["deep"] = found._asdict()
        fields["deep"]["worst"] = {
            site: json_number(share) for site, share in found.worst.items()
        }
    return json.dumps(fields, allow_nan=False)


def _check_deep(deep: bool, given: dict[str, Any]) -> None:
    """Raise SpecError for options of --deep without it."""
    from actstore.errors import SpecError

    if given and not deep:
        names = {"all_units": "--all"}
        option = next(iter(given))
        name = names.get(option, f"--{option.replace('_', '-')}")
        raise SpecError(f"{name} goes with --deep; give that too, or leave it out")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give what shows progress, on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    # On standard error, so that standard output is what a script may read.
    console = Console(stderr=True)
    # Where there is no terminal, a bar would leave an empty line.
    with Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def _print_deep(found: DeepVerified) -> None:
    """Print what was computed again, and what is wrong."""
    for problem in found.problems:
        typer.echo(problem)
    typer.echo(
        f"computed again: norms and statistics of {found.rows:,} rows in"
        f" {found.units} units; {found.model_rows:,} rows with the model:"
        f" {len(found.problems)} wrong"
    )
    if found.worst:
        site = max(found.worst, key=found.worst.__getitem__)
        typer.echo(
            f"largest difference from the model: {found.worst[site]:.2g} of what"
            f" rounding allows, at {site}"
        )
    for note in found.notes:
        typer.echo(f"note: {note}")
