"""Options that commands about stitching share. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import one_of

Small = Annotated[str, typer.Argument(metavar="A", help="The run of the small SAE.")]
Large = Annotated[str, typer.Argument(metavar="B", help="The run of the large SAE.")]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")]
SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="SITE",
        help="The site.",
        show_default="the only one that the runs share",
    ),
]
Threshold = Annotated[
    float,
    typer.Option(metavar="COSINE", help="Cosine above which two latents are similar."),
]
Split = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="held_out or train.",
        autocompletion=one_of("held_out", "train"),
    ),
]
MostRows = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT", help="Rows at most: 50k, 1M.", show_default="all of them"
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of what is drawn.")]
