"""Divides passes further, so that each of several places has one to train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.train import TrainSpec

Pass = dict[str, TrainSpec]
"""The runs of a pass, by URL."""

# The width of rows that costs are compared with, where sizes are expansions of it.
WIDTH = 1 << 10


def spread(passes: Sequence[Pass], n_places: int) -> list[Pass]:
    """Return at least as many passes as places, if there are so many runs.

    Until then the pass that costs most is divided into two that cost about the same.
    Each more reads the data once more, in another place at the same time.
    """
    spread_out = list(passes)
    n_runs = sum(map(len, spread_out))
    while spread_out and len(spread_out) < min(n_places, n_runs):
        costs = [cost(one.values()) if len(one) > 1 else 0 for one in spread_out]
        costliest = costs.index(max(costs))
        spread_out[costliest : costliest + 1] = _halves(spread_out[costliest])
    return spread_out


def cost(specs: Iterable[TrainSpec]) -> int:
    """Return what training runs costs, to be compared with others of the same store.

    A step costs about as much as its dictionary is large.
    """
    return sum(spec.sae.size(WIDTH) * (spec.rows or 1) for spec in specs)


def _halves(one: Pass) -> list[Pass]:
    """Divide a pass; each half keeps the order that its runs had."""
    costly_first = sorted(one, key=lambda url: cost([one[url]]), reverse=True)
    halves: list[list[str]] = [[], []]
    costs = [0, 0]
    for url in costly_first:
        lighter = costs.index(min(costs))
        halves[lighter].append(url)
        costs[lighter] += cost([one[url]])
    return [{url: one[url] for url in one if url in half} for half in halves]
