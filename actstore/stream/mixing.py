"""How far a batch falls short of an i.i.d. draw, and the window that keeps it close.
Pure arithmetic.

Take two rows of a batch that are of one site. They come from a window of w chunks,
drawn without replacement from the group's G * C (G units of C chunks, S sequences each;
a chunk is a random draw of its unit's rows). They share

- the chunk with probability about 1 / w,
- else the unit with probability (C - 1) / (G C - 1),

and two rows of one unit share their sequence with probability about 1 / S. Two rows of
different sites share the unit with probability 1 / G only, since every site has its own
chunk order. A batch of B rows over n sites then has B^2 / 2 * p coincidences, with

    p = [p_same / n + (1 - 1 / n) / G] / S,    p_same = 1 / w + (1 - 1 / w) (C - 1) / (G
    C - 1),

or, where site s has the share f_s and c_s columns and so c_s w chunks, sum_s f_s^2
p_same(c_s w) in place of p_same / n (and sum_s f_s^2 in place of 1 / n). Aligned and
paired sites are read at the same places and count as one site,

where an i.i.d. draw from all N sequences has p = 1 / N. A draw from m sequences holds
D(m) = m (1 - exp(-B / m)) distinct ones; the shortfall is 1 - D(1 / p) / D(N). To first
order, for one site and a large group, that is B / 2M, M = w S: the bound that holds for
any number of sites.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from actstore.errors import SpecError
from actstore.stream.order import group_units
from schemas.harvest import Layout
from schemas.stream import StreamSpec

TARGET = 0.02  # of the default window; the memory budget may force a smaller one


class Mix(NamedTuple):
    """What the mixing of a stream depends on, but for the window. copies: columns of
    each site (order.py).
    """

    layout: Layout
    n_units: int
    copies: tuple[int, ...]
    group_units: int = 0

    @property
    def group(self) -> int:
        """Units of a group."""
        return max(1, min(self.n_units, self.group_units or group_units(self.layout)))


def mixing_shortfall(mix: Mix, window_chunks: int, batch: int) -> float:
    """Share by which a batch falls short of an i.i.d. draw in distinct sequences, 0 ...
    1.
    """
    size, per_unit, n = (
        mix.layout.unit_sequences,
        mix.layout.unit_chunks,
        sum(mix.copies),
    )
    chunks = mix.group * per_unit
    p = (1 - sum((copies / n) ** 2 for copies in mix.copies)) / mix.group
    for copies in mix.copies:
        w = min(copies * window_chunks, chunks)
        p += (copies / n) ** 2 * (
            1 / w + (1 - 1 / w) * (per_unit - 1) / max(1, chunks - 1)
        )
    return max(
        0.0, 1 - _distinct(size / p, batch) / _distinct(mix.n_units * size, batch)
    )


def window_chunks(mix: Mix, place_bytes: int, spec: StreamSpec) -> int:
    """Chunks per column and window: the fewest that reach TARGET, a multiple of the
    lanes, two windows in `memory`.

    place_bytes: of one chunk at all columns (and at all the sites that a column reads).
    Raises SpecError where not even one chunk per lane and column fits.
    """
    lanes = spec.lanes
    if spec.window_chunks is not None:
        if spec.memory != StreamSpec().memory:
            raise SpecError(
                "`memory` plans the windows, and `window_chunks` gives their size;"
                " leave one of them out"
            )
        return -(-spec.window_chunks // lanes) * lanes
    most = spec.memory // (2 * place_bytes)
    if most < lanes:
        raise SpecError(
            f"two windows of {lanes} chunks (one per lane) of {sum(mix.copies)} columns"
            f" take {2 * place_bytes * lanes:,} bytes, but `memory` is {spec.memory:,};"
            " raise it, or lower `lanes`"
        )
    there, chunks = mix.group * mix.layout.unit_chunks, lanes
    while (
        chunks + lanes <= most
        and chunks < there
        and mixing_shortfall(mix, chunks, spec.batch) > TARGET
    ):
        chunks += lanes
    return chunks


def _distinct(m: float, batch: int) -> float:
    return -m * math.expm1(-batch / m)
