"""Says at the end of a command which requests it had to try again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from actstore.machine import tried_again


@contextlib.contextmanager
def telling_retries() -> Iterator[None]:
    """Say after a `with` block, however it ends, what was tried again within it.

    It goes to standard error, and says nothing where nothing was.
    """
    before = tried_again.counts()
    try:
        yield
    finally:
        summary = tried_again.summary(before)
        if summary is not None:
            typer.echo(f"note: {summary}", err=True)
