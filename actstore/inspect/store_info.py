"""Shows what a store holds to people.

It makes a table of norms, a table of how well streams mix, and a plot of mean norm by
layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.store import Store
from schemas.manifest import QUANTILES, StratumNorms

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table


BAR = 8  # characters of the longest bar
# Bytes of memory that are compared: the default, less, and what a large machine has.
BUDGETS = (256 << 20, 1 << 30, 2 << 30, 8 << 30)


def norm_table(store: Store) -> Table:
    """Return the norms of each site over training rows, with a bar for the mean."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title="L2 norms over training rows",
        caption="special: position 0 and special tokens",
    )
    table.add_column("site", no_wrap=True)
    # The column without a name is for the bars.
    for name in ("mean", "", "median", "max", "special", "outliers", "NaN"):
        justify: JustifyMethod = "right" if name else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    every = store.manifest.norms
    means = [norms.all.mean_norm for norms in every if norms.all.count]
    largest_mean = max(means, default=0.0) or 1.0
    for norms in every:
        stratum = norms.all
        quantiles = dict(zip(QUANTILES, stratum.quantiles, strict=True))
        # At least one character: a small norm is not none.
        bar = ""
        if stratum.count:
            length = round(BAR * stratum.mean_norm / largest_mean)
            bar = "█" * max(1, length)
        table.add_row(
            norms.site,
            _figure(stratum, stratum.mean_norm),
            bar,
            _figure(stratum, quantiles[0.5]),
            _figure(stratum, stratum.max_norm),
            _figure(norms.special, norms.special.mean_norm),
            f"{stratum.outliers:,}",
            f"{stratum.non_finite:,}",
        )
    return table


def _figure(stratum: StratumNorms, figure: float) -> str:
    """Return a figure of a stratum; a dash where it has no rows (old stores say 0)."""
    return f"{figure:.3g}" if stratum.count else "-"


def shuffle_table(store: Store, batch: int) -> Table:
    """Return a table of how well windows of a few memory budgets mix.

    It has the chunks per site, the sequences in memory, and the shortfall that
    `stream/mixing.py` defines.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from actstore.errors import SpecError
    from actstore.format.stored_dtypes import numpy_dtype
    from actstore.stream.mixing import Mix, mixing_shortfall, window_chunks
    from schemas.stream import StreamSpec

    layout = store.layout
    n_units = len(store.units("train"))
    n_sites = len(store.sites)
    n_sequences = n_units * layout.unit_sequences
    mix = Mix(layout, n_units, (1,) * n_sites)
    dtype = store.manifest.spec.dtype
    # int8 is decoded to float32 in memory
    value_bytes = 4 if dtype == "int8" else numpy_dtype(dtype).itemsize
    row_values = sum(site.d for site in store.manifest.sites)
    chunk_bytes = row_values * layout.chunk_rows * value_bytes
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"Shuffling all {n_sites} sites in batches of {batch:,} rows",
        caption=(
            "shortfall: of distinct sequences in a batch, against an i.i.d. draw; the"
            " default memory is 2,048 MB"
        ),
    )
    for name in (
        "memory",
        "takes",
        "chunks per site",
        "sequences in reach",
        "shortfall",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for memory in BUDGETS:
        spec = StreamSpec(batch=batch, memory=memory)
        try:
            chunks = window_chunks(mix, chunk_bytes, spec)
        except SpecError:
            table.add_row(f"{memory >> 20:,} MB", "-", "too few", "-", "-")
            continue
        # A chunk has rows of all sequences of its unit, drawn by chance.
        reach = min(chunks * layout.unit_sequences, n_sequences)
        # One window is read while the one before it is used, hence twice.
        in_memory = min(chunks, mix.group * layout.unit_chunks)
        takes = 2 * chunk_bytes * in_memory / 1e6
        table.add_row(
            f"{memory >> 20:,} MB",
            f"{takes:,.0f} MB",
            f"{chunks}",
            f"{reach:,}",
            f"{mixing_shortfall(mix, chunks, batch):.1%}",
        )
    return table
