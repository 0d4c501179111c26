"""Which sites a stream reads together, and in what shares: the columns of its order
(see `order.py`).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from actstore.errors import SpecError
from actstore.format.site_patterns import match_sites
from actstore.store.store import Store
from schemas.stream import StreamSpec

MOST_COLUMNS = 256


class Columns(NamedTuple):
    """What each column of a stream reads.

    sites: names that `Batch.layer` counts; targets: in pair mode, the output site of
    each; label: of each column, an index into `sites`; planes: the sites that are read
    at the same rows, by plane and column: one plane in mixed mode, inputs and targets
    in pair mode, one per site in aligned mode (which has one column).
    """

    sites: tuple[str, ...]
    targets: tuple[str, ...] | None
    label: tuple[int, ...]
    planes: tuple[tuple[str, ...], ...]

    @property
    def copies(self) -> tuple[int, ...]:
        """Columns of each label."""
        return tuple(self.label.count(i) for i in sorted(set(self.label)))

    def widths(self, store: Store) -> tuple[int, ...]:
        """d of each plane. Raises SpecError where sites differ in width that share a
        plane, or a row of several.
        """
        if len(self.planes) > 1 and self.targets is None:
            _one_width(store, self.sites, "aligned")
        return tuple(_one_width(store, plane, "mixed") for plane in self.planes)


def columns_of(store: Store, spec: StreamSpec) -> Columns:
    """The columns that a spec means. Raises SiteError, SpecError."""
    sites = tuple(match_sites(spec.sites or store.sites, store.sites))
    if spec.mode == "aligned":
        return Columns(sites, None, (0,), tuple((site,) for site in sites))
    label = turns(_copies(spec, sites))
    inputs = tuple(sites[i] for i in label)
    if spec.targets is None:
        return Columns(sites, None, label, (inputs,))
    targets = tuple(match_sites(spec.targets, store.sites))
    if len(targets) != len(sites):
        raise SpecError(
            f"pairs need a target for each site, but `sites` are {len(sites)}"
            f" ({', '.join(sites)}) and `targets` are {len(targets)}"
            f" ({', '.join(targets)}); name as many, in the same order"
        )
    return Columns(sites, targets, label, (inputs, tuple(targets[i] for i in label)))


def turns(copies: tuple[int, ...]) -> tuple[int, ...]:
    """An order of taking turns in which i comes `copies[i]` times, spread so that every
    stretch has it in proportion.

    Each turn goes to the earliest deadline among those that may come already (Tijdeman
    1980, the chairman assignment problem): after t turns i has come between t f_i - 1
    and t f_i + 1 times, f_i its share.
    """
    n, come = sum(copies), [0] * len(copies)
    found = []
    for t in range(n):
        ready = [i for i, c in enumerate(copies) if come[i] * n < (t + 1) * c]
        chosen = min(ready, key=lambda i: (Fraction((come[i] + 1) * n, copies[i]), i))
        come[chosen] += 1
        found.append(chosen)
    return tuple(found)


def _copies(spec: StreamSpec, sites: tuple[str, ...]) -> tuple[int, ...]:
    """Weights as the smallest integers in their proportion."""
    if spec.weights is None:
        return (1,) * len(sites)
    weight, of = dict.fromkeys(sites, Fraction(1)), dict.fromkeys(sites, "")
    for pattern, value in spec.weights.items():
        matched = match_sites([pattern], sites)
        weight.update(dict.fromkeys(matched, Fraction(value).limit_denominator(1000)))
        of.update(dict.fromkeys(matched, pattern))
    if unused := [pattern for pattern in spec.weights if pattern not in of.values()]:
        raise SpecError(
            f"weights: {unused[0]!r} does nothing, since later ones give its sites"
            " other weights"
        )
    if min(weight.values()) <= 0:
        raise SpecError(
            "weights below 1/2000 cannot be streamed; leave those sites out"
        )
    whole = math.lcm(*(w.denominator for w in weight.values()))
    counts = [int(w * whole) for w in weight.values()]
    counts = [count // math.gcd(*counts) for count in counts]
    if sum(counts) > MOST_COLUMNS:
        text = ", ".join(f"{site} {w}" for site, w in weight.items())
        raise SpecError(
            f"these weights ({text}) take turns in a cycle of {sum(counts)} rows, at"
            f" most {MOST_COLUMNS} are possible; use weights in a simpler proportion,"
            " such as 1 and 3"
        )
    return tuple(counts)


def _one_width(store: Store, sites: tuple[str, ...], mode: str) -> int:
    widths = {site: store.site(site).d for site in sites}
    if len(set(widths.values())) > 1:
        text = ", ".join(f"{site} ({d})" for site, d in widths.items())
        raise SpecError(
            f"{mode} batches need sites of one width, but there are {text}; name some"
            " with `sites`"
        )
    return next(iter(widths.values()))
