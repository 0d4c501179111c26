"""How far a batch falls short of an i.i.d. draw, and the window that keeps it close. Pure arithmetic.

Take two rows of a batch that are of one site. They come from a window of w chunks, drawn without replacement from the
group's G * C (G units of C chunks, S sequences each; a chunk is a random draw of its unit's rows). They share

- the chunk with probability about 1 / w,
- else the unit with probability (C - 1) / (G C - 1),

and two rows of one unit share their sequence with probability about 1 / S. Two rows of different sites share the unit
with probability 1 / G only, since every site has its own chunk order. A batch of B rows over n sites then has
B^2 / 2 * p coincidences, with

    p = [p_same / n + (1 - 1 / n) / G] / S,    p_same = 1 / w + (1 - 1 / w) (C - 1) / (G C - 1),

where an i.i.d. draw from all N sequences has p = 1 / N. A draw from m sequences holds D(m) = m (1 - exp(-B / m))
distinct ones; the shortfall is 1 - D(1 / p) / D(N). To first order, for one site and a large group, that is B / 2M,
M = w S: the bound that holds for any number of sites.
"""

from __future__ import annotations

import math

from actstore.errors import SpecError
from actstore.stream.order import group_units
from schemas.harvest import Layout
from schemas.stream import StreamSpec

TARGET = 0.02  # of the default window; the memory budget may force a smaller one


def mixing_shortfall(layout: Layout, n_units: int, n_sites: int, window_chunks: int, batch: int) -> float:
    """Share by which a batch falls short of an i.i.d. draw in distinct sequences, 0 ... 1."""
    size, group, per_unit = layout.unit_sequences, min(n_units, group_units(layout)), layout.unit_chunks
    chunks = group * per_unit
    w = min(window_chunks, chunks)
    same = 1 / w + (1 - 1 / w) * (per_unit - 1) / max(1, chunks - 1)
    p = (same / n_sites + (1 - 1 / n_sites) / group) / size
    return max(0.0, 1 - _distinct(1 / p, batch) / _distinct(n_units * size, batch))


def window_chunks(layout: Layout, n_units: int, n_sites: int, chunk_bytes: int, spec: StreamSpec) -> int:
    """Chunks per site and window: the fewest that reach TARGET, a multiple of the lanes, in the memory of two windows.

    Raises SpecError where not even one chunk per lane and site fits.
    """
    lanes = spec.lanes
    if spec.window_chunks is not None:
        return -(-spec.window_chunks // lanes) * lanes
    most = spec.memory // (2 * n_sites * chunk_bytes)
    if most < lanes:
        wanted = 2 * n_sites * chunk_bytes * lanes
        raise SpecError(
            f"two windows of {lanes} chunks (one per lane) of {n_sites} sites take {wanted:,} bytes, but `memory` is "
            f"{spec.memory:,}; raise it, or lower `lanes`"
        )
    there = min(n_units, group_units(layout)) * layout.unit_chunks
    chunks = lanes
    while chunks + lanes <= most and chunks < there:
        if mixing_shortfall(layout, n_units, n_sites, chunks, spec.batch) <= TARGET:
            break
        chunks += lanes
    return chunks


def _distinct(m: float, batch: int) -> float:
    return -m * math.expm1(-batch / m)
