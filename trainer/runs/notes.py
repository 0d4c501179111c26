"""Tells users what they should know though it is no error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from actstore.console.user_warnings import warn
from trainer.errors import TrainerWarning

if TYPE_CHECKING:
    from rich.console import Console

# Takes a note: one sentence or two, without a line feed.
Tell = Callable[[str], None]


def as_warning(note: str) -> None:
    """Tell the caller of a Python function, by a TrainerWarning."""
    warn(note, TrainerWarning)


def as_line(note: str) -> None:
    """Tell the user of a command, by a line on standard error."""
    import typer

    typer.echo(f"note: {note}", err=True)


def on_console(console: Console, note: str) -> None:
    """Tell the user of a command that shows progress, above what it shows."""
    from rich.markup import escape

    console.print(f"[yellow]note[/]: {escape(note)}", highlight=False, soft_wrap=True)
