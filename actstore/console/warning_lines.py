"""Shows the project's warnings on a command line as one line each.

Python would show the line of code that called, which on a command line is a library's.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from actstore.console.printable import printable
from actstore.console.user_warnings import OURS


@contextlib.contextmanager
def warning_lines() -> Iterator[None]:
    """Inside the `with`, print warnings of the project as lines, each text once.

    Those of libraries go their usual way.
    """
    with warnings.catch_warnings():
        usual = warnings.showwarning
        told: set[str] = set()

        def show(
            message: Any,
            category: type[Warning],
            *where: Any,
            **more: Any,
        ) -> None:
            text = str(message)
            if category.__module__.partition(".")[0] not in OURS:
                usual(message, category, *where, **more)
            elif text not in told:
                told.add(text)
                typer.echo(printable(f"warning: {text}"), err=True)

        warnings.showwarning = show  # catch_warnings puts the usual one back
        yield
