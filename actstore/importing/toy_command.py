"""`actstore toy` on the command line. Importing this module loads typer only."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from actstore.harvesting.harvest_command import AsJson
from actstore.harvesting.progress_display import run_with_progress
from actstore.importing import import_options

SCHEMA = "schemas.toy:FeatureSpec"
# Each option's parameter, and the field of the spec that it gives.
FIELDS = {
    "features": "n_features",
    "dims": "d",
    "l0": "l0",
    "exponent": "exponent",
    "topics": "n_topics",
    "boost": "boost",
    "trees": "n_roots",
    "noise": "noise",
    "seed": "seed",
}


def toy_command(
    out: import_options.Out,
    rows: Annotated[
        str, typer.Option(metavar="COUNT", help="Rows: 500k, 1M.")
    ] = "500k",
    features: Annotated[int | None, typer.Option(help="True features, G.")] = None,
    dims: Annotated[int | None, typer.Option(help="Width of a row, d.")] = None,
    l0: Annotated[
        float | None, typer.Option(help="Features that fire on a row, in the mean.")
    ] = None,
    exponent: Annotated[
        float | None,
        typer.Option(help="Features fire less with their rank, as rank^-exponent."),
    ] = None,
    topics: Annotated[
        int | None, typer.Option(help="Groups of features that fire together.")
    ] = None,
    boost: Annotated[
        float | None,
        typer.Option(help="How much more often one fires in rows of its own group."),
    ] = None,
    trees: Annotated[
        int | None, typer.Option(help="Trees of features that fire only in their root.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of noise per dimension.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of features and rows.")] = None,
    dtype: import_options.Dtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Make a store of toy data: sparse sums of features that are known.

    The true features lie beside the rows; `trainer analyze mmcs` finds them there.
    """
    given = {
        "n_features": features,
        "d": dims,
        "l0": l0,
        "exponent": exponent,
        "n_topics": topics,
        "boost": boost,
        "n_roots": trees,
        "noise": noise,
        "seed": seed,
    }
    fields = {name: value for name, value in given.items() if value is not None}

    def run(progress: Any) -> Any:
        from actstore.console.counts import parse_count
        from actstore.importing.toy_store import make_toy_store

        stored: Any = {"dtype": dtype}  # a text: the store's own checks take it
        return make_toy_store(
            out, fields, rows=parse_count(rows), progress=progress, **stored
        )

    run_with_progress(run, as_json=as_json, counted="rows")
