"""The options that many commands share, whatever they do: one table of them.

`Command` in `cli_options.py` gives each command those that it has a use for. What is
given holds as an environment variable while the command runs, so that whatever reads
the variable (`Storage`, say) needs no argument from the command, and workers inherit
it.

To add one: a line in SHARED, and whatever acts on it asks `command_values.use`.
Importing this loads typer only.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import typer.main

from actstore.console.options_json import parse_options
from actstore.errors import SpecError
from actstore.machine import command_values

PANEL = "Where stores lie"
# How parameters that take a store, a run or an output are shown in help: what else a
# command takes, such as a FILE, is always of this machine.
PLACES = {"URL", "RUN", "RUN...", "STORE", "FOLDER", "A", "B", "SRC", "DST"}
# What a run's folder, or a file of a spec, says of other places is not known yet.
NAME_OTHERS = {"RUN", "RUN...", "A", "B", "FILE"}
# How parameters are shown that are names in a catalog, or patterns of such.
NAMES = {"NAME[:TAG]", "PATTERN"}
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")

Given = Mapping[str, str]
"""The shared options that were given, by name."""


class SharedOption(NamedTuple):
    """An option that many commands have.

    Attributes:
        name: As it is written: `--storage-options`.
        variable: The environment variable that holds it while a command runs.
        metavar: What help calls its value.
        help: What help says of it.
        default: What help says happens without it.
        belongs: Tells whether a command has it, by its parameters (click's).
        value: Checks what was given, and returns what the variable holds. It gets
            all shared options, for those that need each other. Raises SpecError.
        for_remote: Whether it does nothing for folders of this machine: then it is
            refused where only such are given.
    """

    name: str
    variable: str
    metavar: str
    help: str
    default: str
    belongs: Callable[[Sequence[Any]], bool]
    value: Callable[[str, Given], str]
    for_remote: bool


def takes_places(params: Sequence[Any]) -> bool:
    """Return whether a command has a parameter for a store, a run or an output."""
    return any(param.metavar in PLACES for param in params)


def reads_catalog(params: Sequence[Any]) -> bool:
    """Return whether a command may have to do with a catalog."""
    return takes_places(params) or any(param.metavar in NAMES for param in params)


def _storage_options(text: str, _: Given) -> str:
    """Return options as JSON: workers may be where a file's path leads nowhere."""
    return json.dumps(parse_options(text, "--storage-options"))


def _catalog(url: str, _: Given) -> str:
    from schemas.catalog import has_secret

    if not url.strip() or has_secret(url):
        raise SpecError(
            "--catalog: wanted a folder or URL without a password, key or token in it;"
            " credentials come from the environment or --storage-options"
        )
    return url


def reads_rows(params: Sequence[Any]) -> bool:
    """Return whether a command may read the rows of a store, by its `--store`."""
    return any(param.name == "store" and param.metavar == "URL" for param in params)


def _cache(folder: str, _: Given) -> str:
    """Return a cache's folder as a path that means the same in every process."""
    if not folder.strip() or _PROTOCOL.match(folder):
        raise SpecError(f"--cache: wanted a folder of this machine, got {folder!r}")
    return str(Path(folder).absolute())


def _cache_size(text: str, given: Given) -> str:
    """Return a cache's size in bytes, as text."""
    from schemas.base import parse_size

    if "--cache" not in given and not os.environ.get(command_values.CACHE):
        raise SpecError("--cache-size: there is no cache; give its folder (--cache)")
    try:
        return str(parse_size(text))
    except ValueError as error:
        raise SpecError(f"--cache-size: {error}") from None


SHARED: tuple[SharedOption, ...] = (
    SharedOption(
        name="--storage-options",
        variable=command_values.STORAGE_OPTIONS,
        metavar="JSON",
        help="Credentials and endpoint of an object store; or a JSON file with them.",
        default="the usual environment",
        belongs=reads_catalog,
        value=_storage_options,
        for_remote=True,
    ),
    SharedOption(
        name="--catalog",
        variable=command_values.CATALOG,
        metavar="URL",
        help="The catalog whose names `catalog:NAME` are.",
        default=f"${command_values.CATALOG}",
        belongs=reads_catalog,
        value=_catalog,
        for_remote=False,
    ),
    SharedOption(
        name="--cache",
        variable=command_values.CACHE,
        metavar="DIR",
        help="A folder of this machine that keeps what is read of a store elsewhere.",
        default="none",
        belongs=reads_rows,
        value=_cache,
        for_remote=True,
    ),
    SharedOption(
        name="--cache-size",
        variable=command_values.CACHE_SIZE,
        metavar="SIZE",
        help="What the cache may take of the disk.",
        default="as before; a new cache: half of what is free",
        belongs=reads_rows,
        value=_cache_size,
        for_remote=True,
    ),
)


def add_to(params: list[Any]) -> None:
    """Add to a command's parameters the shared options that belong to it."""
    belonging = [shared for shared in SHARED if shared.belongs(params)]
    # Copies, since help writes into a command's options.
    params.extend(copy.copy(_as_option(shared)) for shared in belonging)


@functools.cache
def _as_option(shared: SharedOption) -> Any:
    """Return the option as typer has it: taken from a command that has no other."""

    def command(**_: Any) -> None:
        return

    option = typer.Option(
        shared.name,
        metavar=shared.metavar,
        help=shared.help,
        show_default=shared.default,
        rich_help_panel=PANEL,
    )
    parameter = inspect.Parameter(
        _parameter(shared),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )
    command.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return typer.main.get_command(app).params[0]


def _parameter(shared: SharedOption) -> str:
    """Return the name of an option's parameter: `storage_options`."""
    return shared.name.removeprefix("--").replace("-", "_")


@contextlib.contextmanager
def in_force(params: Sequence[Any], values: dict[str, Any]) -> Iterator[None]:
    """Let the shared options of a command line hold for the length of a `with` block.

    Args:
        params: The command's parameters.
        values: Their values, by name; those of shared options are taken out, for the
            command's function does not have them.

    Raises:
        SpecError: A value cannot be used, or would change nothing.
    """
    given = {}
    for shared in SHARED:
        value = values.pop(_parameter(shared), None)
        if value is not None:
            given[shared.name] = str(value)
    asked = [shared for shared in SHARED if shared.name in given]
    for shared in asked:
        if shared.for_remote and _all_here(params, values, given):
            raise SpecError(
                f"{shared.name} does nothing for folders of this machine, and nothing"
                " else is given; leave it out"
            )
    variables = {
        shared.variable: shared.value(given[shared.name], given) for shared in asked
    }
    with command_values.during(variables):
        yield
        for shared in asked:
            if not command_values.was_used(shared.variable):
                typer.echo(f"note: {shared.name} changed nothing here", err=True)


def _all_here(params: Sequence[Any], values: Mapping[str, Any], given: Given) -> bool:
    """Return whether a command line can lead nowhere but to this machine's folders."""
    catalog = given.get("--catalog") or os.environ.get(command_values.CATALOG)
    if catalog and not _is_here(catalog):
        return False
    for param in params:
        value = values.get(str(param.name))
        if value is None or value in ((), []):
            continue
        if param.metavar in NAME_OTHERS:
            return False
        places = value if isinstance(value, (list, tuple)) else [value]
        if param.metavar in PLACES and not all(map(_is_here, places)):
            return False
    return True


def _is_here(place: object) -> bool:
    """Return whether a place is a folder of this machine."""
    text = str(place)
    return text.startswith("file://") or _PROTOCOL.match(text) is None
