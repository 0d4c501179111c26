"""Chooses the columns of a stream's order: its sites, and in what shares they come.

See `order.py` for what a column is.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from actstore.errors import SpecError
from actstore.format.site_patterns import match_sites
from actstore.store.streamed_store import StreamedStore
from schemas.stream import StreamSpec

# Columns of a stream at most: each has its part of every window.
MOST_COLUMNS = 256
# The largest denominator of a weight: three decimals, as people write them. A weight
# below half of 1/1000 is rounded to 0.
FINEST_WEIGHT = 1000


class Columns(NamedTuple):
    """The columns of a stream, and the sites that each of them reads.

    Attributes:
        sites: The names that `Batch.layer` counts.
        targets: In pair mode, the output site of each; None otherwise.
        label: For each column, an index into `sites`.
        planes: The sites that are read at the same rows, by plane and column: one plane
            in mixed mode, inputs and targets in pair mode, one per site in aligned mode
            (which has one column).
    """

    sites: tuple[str, ...]
    targets: tuple[str, ...] | None
    label: tuple[int, ...]
    planes: tuple[tuple[str, ...], ...]

    @property
    def copies(self) -> tuple[int, ...]:
        """Columns of each label."""
        labels = sorted(set(self.label))
        return tuple(self.label.count(label) for label in labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Every site that is read, once."""
        every_name = [name for plane in self.planes for name in plane]
        return tuple(dict.fromkeys(every_name))

    def widths(self, store: StreamedStore) -> tuple[int, ...]:
        """Return d of each plane.

        Raises:
            SpecError: Sites differ in width that share a plane, or a row of several.
        """
        if len(self.planes) > 1 and self.targets is None:
            _one_width(store, self.sites, "aligned")
        return tuple(_one_width(store, plane, "mixed") for plane in self.planes)


def columns_of(store: StreamedStore, spec: StreamSpec) -> Columns:
    """Return the columns that a spec means.

    Raises:
        SiteError: No site of the store matches a name or pattern.
        SpecError: There is not a target for each site, or the weights cannot be used.
    """
    sites = tuple(match_sites(spec.sites or store.sites, store.sites))
    if spec.mode == "aligned":
        planes = tuple((site,) for site in sites)
        return Columns(sites, None, label=(0,), planes=planes)
    # Columns take turns row by row, so their order is that of the sites in a batch.
    label = turns(_copies(spec, sites))
    inputs = tuple(sites[i] for i in label)
    if spec.targets is None:
        return Columns(sites, None, label, planes=(inputs,))
    targets = tuple(match_sites(spec.targets, store.sites))
    if len(targets) != len(sites):
        raise SpecError(
            f"pairs need a target for each site, but `sites` are {len(sites)}"
            f" ({', '.join(sites)}) and `targets` are {len(targets)}"
            f" ({', '.join(targets)}); name as many, in the same order"
        )
    outputs = tuple(targets[i] for i in label)
    return Columns(sites, targets, label, planes=(inputs, outputs))


def turns(copies: tuple[int, ...]) -> tuple[int, ...]:
    """Return an order of taking turns in which i comes `copies[i]` times.

    It is spread so that every stretch has each i in proportion: after t turns i has
    come between t f_i - 1 and t f_i + 1 times, with f_i its share. Each turn goes to
    the earliest deadline among those that may come already (Tijdeman 1980, the chairman
    assignment problem).

    In numbers: copies (1, 2), so shares 1/3 and 2/3. The k-th turn of i is due by k /
    f_i: 3 for site 0, 3/2 and 3 for site 1. A site may take turn t if it has come fewer
    than t f_i times. Turn 1: both may; site 1 is due by 3/2, site 0 by 3: site 1. Turn
    2: both may (0 < 2/3, 1 < 4/3), both are due by 3; the smaller number goes first:
    site 0. Turn 3: site 0 may not (1 = 3 * 1/3): site 1. The order is (1, 0, 1).
    """
    n_turns = sum(copies)
    times_come = [0] * len(copies)
    order = []
    for turn in range(1, n_turns + 1):
        ready = [
            i
            for i, copy_count in enumerate(copies)
            if times_come[i] * n_turns < turn * copy_count
        ]
        # Exact fractions: a tie must be a tie on every machine.
        deadlines = {}
        for i in ready:
            next_turn = times_come[i] + 1
            deadlines[i] = Fraction(next_turn * n_turns, copies[i])
        # If deadlines are equal, the smaller number goes first.
        chosen = min(ready, key=lambda i: (deadlines[i], i))
        times_come[chosen] += 1
        order.append(chosen)
    return tuple(order)


def _copies(spec: StreamSpec, sites: tuple[str, ...]) -> tuple[int, ...]:
    """Return the columns of each site: weights as the smallest integers in proportion.

    In numbers: weights 0.5, 1 and 1.5 make 1, 2 and 3 columns.
    """
    if spec.weights is None:
        return (1,) * len(sites)
    weight = _weight_by_site(spec.weights, sites)
    if min(weight.values()) <= 0:
        raise SpecError(
            "weights below 1/2000 cannot be streamed; leave those sites out"
        )
    # Fractions are exact: weights of 0.1 and 0.3 are 1 to 3.
    denominators = [value.denominator for value in weight.values()]
    denominator = math.lcm(*denominators)
    counts = [int(value * denominator) for value in weight.values()]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    if sum(counts) > MOST_COLUMNS:
        shown = ", ".join(f"{site} {value}" for site, value in weight.items())
        raise SpecError(
            f"these weights ({shown}) take turns in a cycle of {sum(counts)} rows, at"
            f" most {MOST_COLUMNS} are possible; use weights in a simpler proportion,"
            " such as 1 and 3"
        )
    return tuple(counts)


def _weight_by_site(
    weights: dict[str, float], sites: tuple[str, ...]
) -> dict[str, Fraction]:
    """Return each site's weight: that of the last pattern that matches it, or 1.

    Raises SpecError where a pattern gives no site its weight.
    """
    weight = dict.fromkeys(sites, Fraction(1))
    pattern_of = dict.fromkeys(sites, "")
    for pattern, value in weights.items():
        rounded = Fraction(value).limit_denominator(FINEST_WEIGHT)
        for site in match_sites([pattern], sites):
            weight[site] = rounded
            pattern_of[site] = pattern
    used = set(pattern_of.values())
    for pattern in weights:
        if pattern not in used:
            raise SpecError(
                f"weights: {pattern!r} does nothing, since later ones give its sites"
                " other weights"
            )
    return weight


def _one_width(
    store: StreamedStore,
    sites: tuple[str, ...],
    mode: str,
) -> int:
    widths = {site: store.site(site).d for site in sites}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{site} ({d})" for site, d in widths.items())
        raise SpecError(
            f"{mode} batches need sites of one width, but there are {shown}; name some"
            " with `sites`"
        )
    return next(iter(widths.values()))
