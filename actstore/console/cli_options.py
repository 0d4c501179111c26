"""The options that both command lines share.

Their help tells every default, and tab completion knows their values.

An option that stands for a field of a spec has no default of its own: the schema tells
it, when help is asked for. Importing this module loads typer only.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from actstore.arguments import options_are_known
from actstore.console import shared_options
from actstore.console.told_retries import telling_retries

Fields = Mapping[str, str]
"""The dotted path of an option's field, by the option's parameter."""
Values = Mapping[str, Collection[str]]
"""Some values of options, by the option's parameter."""
METAVARS = {"count": "COUNT", "size": "SIZE", "integer": "N", "number": "NUMBER"}


class Command(TyperCommand):
    """A command whose help shows the default of every option.

    It has the options of `shared_options.py` that belong to it, beside its own.

    Attributes:
        schema: The schema that options are fields of: `schemas.train:TrainSpec`.
        fields: The dotted path of an option's field, by the option's parameter. Others
            say themselves what they do without a value.
        of_some_kinds: Parameters of options whose help begins with the kinds of SAE
            that have their field.
        not_offered: Values of fields that are of no use on a command line.
    """

    schema: str = ""
    fields: Fields = {}
    of_some_kinds: Collection[str] = ()
    not_offered: Values = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shared_options.add_to(self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command line, with refusals in our own words."""
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _refusal(error)
            raise
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it raises and warns of names options."""
        with (
            options_are_known(),
            telling_retries(),
            shared_options.in_force(self.params, ctx.params),
        ):
            return super().invoke(ctx)

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Of copies: a default that help shows is not one that the command then takes.
        shown = copy.copy(self)
        shown.params = [copy.copy(param) for param in self.params]
        option_of_field = {
            path.rpartition(".")[2]: option(name) for name, path in self.fields.items()
        }
        params: list[Any] = list(shown.params)
        for param in params:
            path = self.fields.get(str(param.name), "")
            if param.name in self.of_some_kinds:
                kinds = _kinds_with_field(self.schema, path)
                param.help = f"{', '.join(kinds)}: {param.help}"
            not_offered = self.not_offered.get(str(param.name), ())
            _describe(param, self.schema, path, option_of_field, not_offered)
        super(Command, shown).format_help(ctx, formatter)


class Commands(TyperGroup):
    """A group of commands whose help does not call its flags `<bool>`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for param in self.params:
            _without_type(param)
        super().format_help(ctx, formatter)

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))


def command_for(
    schema: str,
    fields: Fields,
    of_some_kinds: Collection[str] = (),
    not_offered: Values | None = None,
) -> type[Command]:
    """Return the class of a command with options that are fields of a schema."""
    attributes = {
        "schema": schema,
        "fields": fields,
        "of_some_kinds": of_some_kinds,
        "not_offered": not_offered or {},
    }
    return type("SpecCommand", (Command,), attributes)


def _without_type(flag: Any) -> Any:
    """Return a flag whose help leaves out the type that typer would show for it."""
    if flag is not None:
        flag.metavar = ""
    return flag


def _refusal(error: Any) -> str:
    """Return what is wrong with an option's value, as our other messages say it.

    What typer passes on from pydantic is "Input should be a valid integer, unable to
    parse string as an integer"; this says "wanted a whole number, got 'x'". Texts of
    typer's own are left as they are.
    """
    refused = error.__cause__
    if type(refused).__name__ != "ValidationError":
        text: str = error.message
        return text
    from actstore.validation import WORDS

    problem = refused.errors()[0]
    kind: str = problem["type"]
    came = problem["input"]
    if kind.startswith(("int_", "float_")):
        number = WORDS["integer" if kind.startswith("int_") else "number"]
        return f"wanted {number}, got {came!r}"
    if kind == "greater_than_equal":
        return f"wanted {problem['ctx']['ge']} or more, got {came!r}"
    return f"{problem['msg']}, got {came!r}"


def option(field: str) -> str:
    """Return a parameter's name as it is written on a command line."""
    return f"--{field.replace('_', '-')}"


def panel_option(panel: str, *names: str, help: str, **more: Any) -> Any:  # noqa: A002
    """Return an option that the help shows in a panel.

    Args:
        panel: The panel's title.
        names: How the option is written, where that is not its parameter's name.
        help: What the help says.
        more: What else `typer.Option` takes.
    """
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Return what completes an option with these values when Tab is pressed."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def values_of(
    schema: str, path: str, not_offered: Collection[str] = ()
) -> Callable[[str], list[str]]:
    """Return what completes an option with the values that its field can have.

    They are looked up when Tab is pressed: pydantic is not loaded before.
    """

    def complete(incomplete: str) -> list[str]:
        return one_of(*offered(schema, path, not_offered))(incomplete)

    return complete


@functools.cache
def choices(schema: str, path: str) -> tuple[str, ...]:
    """Return the values of a field with a fixed set of them, such as an SAE's kind."""
    from actstore.validation import choices_of

    return choices_of(_json_schema(schema), path)


def offered(schema: str, path: str, not_offered: Collection[str]) -> tuple[str, ...]:
    """Return the values of a field that a command line offers."""
    return tuple(value for value in choices(schema, path) if value not in not_offered)


def _kinds_with_field(schema: str, path: str) -> list[str]:
    """Return the kinds of SAE that have a field: of `sae.l0` it is jumprelu."""
    from actstore.validation import kinds_with

    above, _, field = path.rpartition(".")
    having = kinds_with(_json_schema(schema), field)
    # in the order in which `--sae` lists all of them
    return [kind for kind in choices(schema, f"{above}.kind") if kind in having]


def _json_schema(schema: str) -> dict[str, Any]:
    from actstore.validation import json_schema

    # Named and not imported at the top: pydantic takes longer than all other help.
    module, name = schema.split(":")
    return json_schema(getattr(import_module(module), name))


def _describe(
    param: Any,
    schema: str,
    path: str,
    option_of_field: Mapping[str, str],
    not_offered: Collection[str],
) -> None:
    """Put the default, values and type of an option into its help.

    Args:
        param: The option, as click has it.
        schema: As in `Command`.
        path: The dotted path of its field; "" for none.
        option_of_field: The options' names, by the name of their field.
        not_offered: Values of the field that the help does not name.
    """
    is_flag = getattr(param, "is_bool_flag", False)
    if is_flag:
        param.metavar = ""
        if not param.secondary_opts and not param.default:
            param.show_default = "off"
            return
    if param.param_type_name == "argument":
        # Its name says more than `<str>`, which typer would put beside it.
        param.display_type_rich = _no_type
    if path:
        _describe_field(param, schema, path, option_of_field, not_offered)
    # `--pack / --no-pack`: in a column of its own the second name would take room from
    # the others.
    if is_flag and param.secondary_opts:
        if isinstance(param.show_default, bool):
            names = param.opts if param.default else param.secondary_opts
            param.show_default = names[0].removeprefix("--")
        param.help = f"{param.help} Or {param.secondary_opts[0]}."
        param.secondary_opts = []


def _no_type(**_: Any) -> None:
    """Return no type of an argument; this has the form of typer's own method."""
    return


def _describe_field(
    param: Any,
    schema: str,
    path: str,
    option_of_field: Mapping[str, str],
    not_offered: Collection[str],
) -> None:
    """Put what the schema says of an option's field into the option's help."""
    from actstore.validation import fields_at, kind_of

    nodes = fields_at(_json_schema(schema), path)
    values = offered(schema, path, not_offered)
    # An option that takes more than fixed values, such as --separator a token id too,
    # says itself what it takes.
    if values and not _takes_more(nodes[0]):
        param.help = f"{param.help or ''} One of {', '.join(values)}.".strip()
    if param.metavar is None:
        param.metavar = "NAME" if values else METAVARS.get(kind_of(nodes[0]), "TEXT")
    # An option whose default is a text says itself what happens without it.
    if param.required or not isinstance(param.show_default, bool):
        return
    # Kinds of SAE may have the same field with different defaults.
    defaults = dict.fromkeys(default_of(node) for node in nodes)
    known_values = [value for value, _ in defaults if value is not None]
    if len(defaults) == 1 and known_values:
        param.default = known_values[0]
        return
    texts = dict.fromkeys(text or str(value) for value, text in defaults)
    what = " or ".join(texts)
    # Descriptions speak of fields; here they are options: `target_l0`, `--target-l0`.
    for field, name in option_of_field.items():
        what = what.replace(f"`{field}`", name)
        if "_" in field:
            what = re.sub(rf"\b{field}\b", name, what)
    param.show_default = what


def _takes_more(node: Mapping[str, Any]) -> bool:
    """Return whether a field takes other values beside a fixed set of them."""
    return any(
        "enum" not in alternative and alternative.get("type") != "null"
        for alternative in node.get("anyOf", ())
    )


def default_of(node: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the default of a field of a JSON schema, as help shows it.

    Returns:
        (value, ""); where the value is null, (None, what happens then), which the
        field's description says after `None: `.
    """
    value = node.get("default")
    if value is None:
        return None, node.get("description", "").partition("None: ")[2]
    if value is False or value is True:
        return value, ""
    if node.get("format") == "size":
        return _size_text(value), ""
    if isinstance(value, float):
        return f"{value:g}", ""
    return str(value), ""


def _size_text(n_bytes: int) -> str:
    """Return bytes as GiB or MiB, where they are whole ones."""
    if n_bytes % (1 << 30) == 0:
        return f"{n_bytes >> 30}GiB"
    if n_bytes % (1 << 20) == 0:
        return f"{n_bytes >> 20}MiB"
    return str(n_bytes)


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
    """Take the options that come before a command, such as `--version`."""


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
