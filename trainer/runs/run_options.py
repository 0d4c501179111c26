"""Options that several commands about runs share. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

# A store may have been moved since the training: the run's record has where it was.
OtherStore = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The store.",
        show_default="the one the run was trained from",
    ),
]
