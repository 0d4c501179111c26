"""Where errors become one clear message: both command lines run through `run`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from actstore.errors import ActstoreError

DEBUG = "ACTSTORE_DEBUG"


def run(app: Callable[[], Any]) -> None:
    """Run a typer app. A user's mistake gives a message and exit code 1, no traceback (unless ACTSTORE_DEBUG)."""
    from pydantic import ValidationError

    try:
        app()
    except (ActstoreError, ValidationError) as error:
        if os.environ.get(DEBUG):
            raise
        message = str(error) if isinstance(error, ActstoreError) else sentences(error)
        typer.echo(f"error: {message}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


def sentences(error: Any) -> str:
    """A pydantic ValidationError as sentences: which field, what was wanted, what came."""
    lines = []
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"]) or error.title
        came = f" (got {one['input']!r})" if not isinstance(one["input"], dict) else ""
        wanted = "there is no such key; check its spelling" if one["type"] == "extra_forbidden" else one["msg"]
        lines.append(f"{place}: {wanted}{came}")
    return "; ".join(lines)
