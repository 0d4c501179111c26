"""The options of `actstore import`. Importing this loads typer only."""

from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help=(
            "Files or folders, or NAME=PATH for several sites. Parts of one array come"
            " in natural order."
        ),
    ),
]
Out = Annotated[
    str,
    typer.Option(
        metavar="URL", help="Where the store goes: a folder or any fsspec URL."
    ),
]
SiteName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the one site.",
        show_default="the array's name in its file, or the file's",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=(
            "auto, npy, pt, safetensors, hdf5, parquet, zarr or saelens (a `datasets`"
            " folder)."
        ),
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Array, tensor, dataset or column to take. May be given again.",
        show_default="all of floats",
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="File with token ids of the same rows; -1 is padding.",
        show_default="none",
    ),
]
TokenKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the token ids, in their file or beside the activations.",
        show_default="the only one",
    ),
]
Context = Annotated[
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
]
Rows = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT",
        help="Take at most so many rows: 300k, 1M, 2.5B.",
        show_default="all",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Model that the activations are of; it is noted, not loaded.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Stored values: bfloat16, float16, float32 or int8."
    ),
]
Codec = Annotated[str, typer.Option(metavar="NAME", help="lz4, zstd or raw.")]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", help="Seed of the order in which a unit's rows are stored."
    ),
]
Memory = Annotated[
    str,
    typer.Option(
        metavar="SIZE", help="Memory for units on their way to the store: 4GiB, 500MB."
    ),
]
UnitSequences = Annotated[
    int | None,
    typer.Option(metavar="N", help="Sequences per unit.", show_default="planned"),
]
ChunkRows = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rows per chunk.", show_default="planned"),
]
