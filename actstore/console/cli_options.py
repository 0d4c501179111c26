"""Options of both command lines: help that tells every default, and values that tab
completion knows.

An option that stands for a field of a spec has no default of its own: the schema tells
it, when help is asked for. Importing this loads typer only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Fields = Mapping[str, str]  # an option's parameter -> the dotted path of its field
METAVARS = {"count": "COUNT", "size": "SIZE", "integer": "N", "number": "NUMBER"}


class Command(TyperCommand):
    """A command whose help shows the default of every option; without a field, what the
    option says of itself.
    """

    schema: str = ""  # such as schemas.train:TrainSpec
    fields: Fields = {}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        names = {
            path.rpartition(".")[2]: option(name) for name, path in self.fields.items()
        }
        for param in self.params:
            _describe(param, self.schema, self.fields.get(str(param.name), ""), names)
        super().format_help(ctx, formatter)


def command_for(schema: str, fields: Fields) -> type[Command]:
    """The class of a command with options that are fields of a schema, such as
    `schemas.train:TrainSpec`.
    """
    return type("SpecCommand", (Command,), {"schema": schema, "fields": fields})


def option(field: str) -> str:
    """A parameter's name as it is written on a command line."""
    return f"--{field.replace('_', '-')}"


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Tab completion with these values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def values_of(schema: str, path: str) -> Callable[[str], list[str]]:
    """Tab completion with the values of a field that has a fixed set of them."""

    def complete(incomplete: str) -> list[str]:
        return one_of(*choices(schema, path))(incomplete)

    return complete


@functools.cache
def choices(schema: str, path: str) -> tuple[str, ...]:
    """The values of a field that has a fixed set of them, such as the kinds of SAE."""
    from actstore.validation import choices_of

    return choices_of(_json_schema(schema), path)


def _json_schema(schema: str) -> dict[str, Any]:
    from actstore.validation import json_schema

    module, name = schema.split(":")
    return json_schema(getattr(import_module(module), name))


def _describe(param: Any, schema: str, path: str, names: Mapping[str, str]) -> None:
    """Put the default, values and type into an option's help: of its field, where it is
    one of a schema.
    """
    flag = getattr(param, "is_bool_flag", False)
    if flag:
        param.metavar = ""
        if not param.secondary_opts and not param.default:
            param.show_default = "off"
            return
    if path:
        _describe_field(param, schema, path, names)
    # in a column of its own it would take the others' room
    if flag and param.secondary_opts:
        if isinstance(param.show_default, bool):
            param.show_default = (
                param.opts if param.default else param.secondary_opts
            )[0].removeprefix("--")
        param.help = f"{param.help} Or {param.secondary_opts[0]}."
        param.secondary_opts = []


def _describe_field(
    param: Any, schema: str, path: str, names: Mapping[str, str]
) -> None:
    from actstore.validation import fields_at, kind_of

    nodes = fields_at(_json_schema(schema), path)
    values = choices(schema, path)
    if values:
        param.help = f"{param.help or ''} One of {', '.join(values)}.".strip()
    if param.metavar is None:
        param.metavar = "NAME" if values else METAVARS.get(kind_of(nodes[0]), "TEXT")
    # it says itself what happens without it
    if param.required or not isinstance(param.show_default, bool):
        return
    told = dict.fromkeys(default_of(node) for node in nodes)
    values_told = [value for value, _ in told if value is not None]
    if len(told) == 1 and values_told:
        param.default = values_told[0]
        return
    what = " or ".join(dict.fromkeys(text or str(value) for value, text in told))
    for field, name in names.items():  # fields as options
        what = re.sub(rf"\b{field}\b", name, what) if "_" in field else what
    param.show_default = what


def default_of(node: Mapping[str, Any]) -> tuple[Any, str]:
    """(value, "") of a field of a JSON schema; where that is null, (None, what happens
    then), as its description says behind `None: `.
    """
    value = node.get("default")
    if value is None:
        return None, node.get("description", "").partition("None: ")[2]
    if value is False or value is True:
        return value, ""
    if node.get("format") == "size" and value % (1 << 20) == 0:
        return (
            f"{value >> 30}GiB" if value % (1 << 30) == 0 else f"{value >> 20}MiB"
        ), ""
    return (f"{value:g}" if isinstance(value, float) else str(value)), ""


def _show_version(context: typer.Context, asked: bool) -> None:
    if asked:
        from actstore import __version__

        typer.echo(f"{context.command.name} {__version__}")
        raise typer.Exit


def with_version(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Name and version."
        ),
    ] = False,
) -> None:
    """What a command line takes before its commands."""


Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, ...",
        autocompletion=one_of("cpu", "cuda"),
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]

TrustAgain = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help=(
            "Run code that comes with the model: to be said again where the harvest was"
            " told so."
        ),
    ),
]
