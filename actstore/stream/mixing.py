"""The share by which a batch falls short of an i.i.d. draw, and windows to suit.

This is pure arithmetic.

Take two rows of a batch that are of one site. They come from a window of w chunks,
drawn without replacement from the group's G * C (G units of C chunks, S sequences each;
a chunk is a random draw of its unit's rows). They share

- the chunk with probability about 1 / w,
- else the unit with probability (C - 1) / (G C - 1),

and two rows of one unit share their sequence with probability about 1 / S. Two rows of
different sites share the unit with probability 1 / G only, since every site has its own
chunk order. A batch of B rows over n sites then has B^2 / 2 * p coincidences, with

    p = [p_same / n + (1 - 1 / n) / G] / S
    p_same = 1 / w + (1 - 1 / w) (C - 1) / (G C - 1)

or, where site s has the share f_s and c_s columns and so c_s w chunks, sum_s f_s^2
p_same(c_s w) in place of p_same / n (and sum_s f_s^2 in place of 1 / n). Aligned and
paired sites are read at the same tokens and count as one site.

An i.i.d. draw from all N sequences has p = 1 / N. A draw from m sequences holds D(m) =
m (1 - exp(-B / m)) distinct ones; the shortfall is 1 - D(1 / p) / D(N). To first order,
for one site and a large group, that is B / 2M, M = w S: the bound that holds for any
number of sites.

In numbers: one site, 100 units (all one group) of 64 sequences in 8 chunks, windows of
32 chunks, batches of 1,024 rows. p_same = 1/32 + 31/32 * 7/799 = 0.0397, so p = 0.0397
/ 64 = 1 / 1,610. Of those, a batch holds D(1,610) = 758 sequences; of all 6,400 it
would hold D(6,400) = 946: it falls short by 20 %. (The bound is 1,024 / (2 * 32 * 64) =
25 %.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from actstore.errors import SpecError
from actstore.stream.group_cells import default_group_units
from schemas.harvest import Layout
from schemas.stream import StreamSpec

# The shortfall that the default window is chosen for: 1 distinct sequence of 50 fewer
# than chance gives. The memory budget may force a smaller window.
TARGET = 0.02


class Mix(NamedTuple):
    """All that the mixing of a stream depends on, except for the window.

    Attributes:
        layout: Sizes of the store's units and chunks.
        n_units: Units that are streamed.
        copies: Columns of each site (see `order.py`).
        group_units: Units that are shuffled together; None: as many as of a finished
            store.
    """

    layout: Layout
    n_units: int
    copies: tuple[int, ...]
    group_units: int | None = None

    @property
    def group(self) -> int:
        """Units of a group: not more than there are."""
        group_units = self.group_units
        if group_units is None:
            group_units = default_group_units(self.layout)
        return max(1, min(self.n_units, group_units))


def mixing_shortfall(mix: Mix, window_chunks: int, batch: int) -> float:
    """Return by which share a batch falls short of an i.i.d. draw, 0 to 1.

    Both are counted in distinct sequences (see the top of this file).

    Args:
        mix: What the mixing depends on.
        window_chunks: Chunks per column and window (w).
        batch: Rows of a batch (B).
    """
    n_sequences = mix.layout.unit_sequences
    unit_chunks = mix.layout.unit_chunks
    n_columns = sum(mix.copies)
    group_chunks = mix.group * unit_chunks
    shares_squared = [(copies / n_columns) ** 2 for copies in mix.copies]
    # That two rows share the unit, summed over pairs of different sites ...
    p_unit = (1 - sum(shares_squared)) / mix.group
    for copies, share_squared in zip(mix.copies, shares_squared, strict=True):
        # ... and over pairs of one site, which may also share the chunk.
        w = min(copies * window_chunks, group_chunks)
        other_chunks = max(1, group_chunks - 1)
        p_same = 1 / w + (1 - 1 / w) * (unit_chunks - 1) / other_chunks
        p_unit += share_squared * p_same
    reached = n_sequences / p_unit
    drawn = _distinct(reached, batch)
    drawn_independently = _distinct(mix.n_units * n_sequences, batch)
    return max(0.0, 1 - drawn / drawn_independently)


def window_chunks(mix: Mix, cell_bytes: int, spec: StreamSpec) -> int:
    """Return the chunks per column and window that a stream takes.

    The fewest that reach TARGET, a multiple of the lanes, as far as two windows fit
    into `spec.memory`; or what `spec.window_chunks` says.

    Args:
        mix: What the mixing depends on.
        cell_bytes: Memory of one chunk at all columns, and at all the sites that a
            column reads.
        spec: The stream's spec.

    Raises:
        SpecError: Not even one chunk per lane and column fits into the memory, or the
            spec gives both the memory and the window.
    """
    lanes = spec.lanes
    if spec.window_chunks is not None:
        if spec.memory != StreamSpec().memory:
            raise SpecError(
                "`memory` plans the windows, and `window_chunks` gives their size;"
                " leave one of them out"
            )
        return -(-spec.window_chunks // lanes) * lanes
    most_chunks = spec.memory // (2 * cell_bytes)
    if most_chunks < lanes:
        raise SpecError(
            f"two windows of {lanes} chunks (one per lane) of {sum(mix.copies)} columns"
            f" take {2 * cell_bytes * lanes:,} bytes, but `memory` is {spec.memory:,};"
            " raise it, or lower `lanes`"
        )
    group_chunks = mix.group * mix.layout.unit_chunks
    chunks = lanes
    while (
        chunks + lanes <= most_chunks
        and chunks < group_chunks
        and mixing_shortfall(mix, chunks, spec.batch) > TARGET
    ):
        chunks += lanes
    return chunks


def _distinct(m: float, batch: int) -> float:
    """Return the expected number of distinct sequences in a draw from m of them."""
    # m (1 - exp(-B / m)), without losing digits where m is large.
    return -m * math.expm1(-batch / m)
