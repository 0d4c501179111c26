"""The commands `trainer token make`, `ls` and `revoke`; importing loads typer only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actstore.console.cli_options import AsJson, Command, Commands, one_of

if TYPE_CHECKING:
    from trainer.service.tokens import Tokens

token = typer.Typer(
    cls=Commands,
    help="Make, list and revoke the tokens by which users enter a service.",
    no_args_is_help=True,
)
Runs = Annotated[
    str | None,
    typer.Option(
        "--runs",
        metavar="URL",
        help="The folder of runs of the service.",
        show_default="--state says which service",
    ),
]
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Its folder of state, where it was given to `trainer serve`.",
        show_default="as of `trainer serve`",
    ),
]


@token.command("make", cls=Command)
def make_command(
    *,
    user: Annotated[str, typer.Option(metavar="NAME", help="Whose it is.")],
    role: Annotated[
        str,
        typer.Option(
            metavar="ROLE",
            help="reader: see everything; submitter: start runs, too; admin: change"
            " those of others.",
            autocompletion=one_of("reader", "submitter", "admin"),
        ),
    ],
    days: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="How many days it counts.",
            show_default="until it is revoked",
        ),
    ] = None,
    runs: Runs = None,
    state: State = None,
) -> None:
    """Make a token. It is printed once, and nothing keeps it."""
    typer.echo(_tokens(runs, state).make(user, role, days))  # type: ignore[arg-type]


@token.command("ls", cls=Command)
def ls_command(
    *, runs: Runs = None, state: State = None, as_json: AsJson = False
) -> None:
    """List the tokens, without their secrets."""
    found = _tokens(runs, state).list()
    if as_json:
        import json

        typer.echo(json.dumps([info.model_dump() for info in found], indent=1))
        return
    for info in found:
        until = "revoked" if info.revoked else f"until {info.expires or 'revoked'}"
        typer.echo(f"{info.id}  {info.role:<9}  {info.user}  {until}")


@token.command("revoke", cls=Command)
def revoke_command(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="Its id, as `trainer token ls` says.")
    ],
    *,
    runs: Runs = None,
    state: State = None,
) -> None:
    """Let a token count no longer, from now on."""
    info = _tokens(runs, state).revoke(token_id)
    typer.echo(f"revoked: {info.id} of {info.user}")


def _tokens(runs: str | None, state: str | None) -> Tokens:
    from trainer.service.state_folder import state_folder
    from trainer.service.tokens import Tokens

    return Tokens(state_folder(runs, state))
