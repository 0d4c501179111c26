"""`actstore import` on the command line. Importing this module loads typer only."""

from __future__ import annotations

from typing import Any

from actstore.harvesting.harvest_command import AsJson
from actstore.harvesting.progress_display import run_with_progress
from actstore.importing import import_options


def import_command(
    source: import_options.Source,
    out: import_options.Out,
    site: import_options.SiteName = None,
    format: import_options.Format = "auto",  # noqa: A002 (the option's name)
    key: import_options.Keys = None,
    tokens: import_options.Tokens = None,
    token_key: import_options.TokenKey = None,
    context: import_options.Context = None,
    rows: import_options.Rows = None,
    model: import_options.Model = "unknown",
    dtype: import_options.Dtype = "bfloat16",
    codec: import_options.Codec = "lz4",
    seed: import_options.Seed = 0,
    memory: import_options.Memory = "4GiB",
    unit_sequences: import_options.UnitSequences = None,
    chunk_rows: import_options.ChunkRows = None,
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
