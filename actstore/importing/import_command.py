"""`actstore import` on the command line. Importing this module loads typer only."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from actstore.harvesting.harvest_command import AsJson
from actstore.harvesting.progress_display import run_with_progress


def import_command(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help=(
                "Files or folders, or NAME=PATH for several sites. Parts of one array"
                " come in natural order."
            ),
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where the store goes: a folder or any fsspec URL.",
        ),
    ],
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the one site.",
            show_default="the array's name in its file, or the file's",
        ),
    ] = None,
    format: Annotated[  # noqa: A002 (the option's name)
        str,
        typer.Option(
            metavar="NAME",
            help=(
                "auto, npy, pt, safetensors, hdf5, parquet, zarr or saelens (a"
                " `datasets` folder)."
            ),
        ),
    ] = "auto",
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Array, tensor, dataset or column to take. May be given again.",
            show_default="all of floats",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File with token ids of the same rows; -1 is padding.",
            show_default="none",
        ),
    ] = None,
    token_key: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the token ids, in their file or beside the activations.",
            show_default="the only one",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help=(
                "Tokens per sequence, where rows come one after the other and are whole"
                " sequences."
            ),
            show_default="the arrays' own",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Take at most so many rows: 300k, 1M, 2.5B.",
            show_default="all",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Model that the activations are of; it is noted, not loaded.",
        ),
    ] = "unknown",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Stored values: bfloat16, float16, float32 or int8."
        ),
    ] = "bfloat16",
    codec: Annotated[
        str, typer.Option(metavar="NAME", help="lz4, zstd or raw.")
    ] = "lz4",
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="Seed of the order in which a unit's rows are stored."
        ),
    ] = 0,
    memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Memory for units on their way to the store: 4GiB, 500MB.",
        ),
    ] = "4GiB",
    unit_sequences: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sequences per unit.", show_default="planned"),
    ] = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows per chunk.", show_default="planned"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a store of activations that exist already.

    The same command resumes an unfinished import.
    """

    def run(progress: Any) -> Any:
        from actstore.console.counts import parse_count, parse_size
        from actstore.importing.import_activations import import_activations

        # Texts until here: the store's own checks say what they must be.
        stored: Any = {
            "dtype": dtype,
            "codec": codec,
            "seed": seed,
            "memory": parse_size(memory),
            "unit_sequences": unit_sequences,
            "chunk_rows": chunk_rows,
        }
        return import_activations(
            source,
            out,
            site=site,
            keys=tuple(key or ()),
            tokens=tokens,
            token_key=token_key,
            format=format,
            context=context,
            rows=None if rows is None else parse_count(rows),
            model=model,
            progress=progress,
            **stored,
        )

    run_with_progress(run, as_json=as_json, counted="rows")
