"""Divides passes further, so that each of several places has one to train."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.train import TrainSpec

Pass = dict[str, TrainSpec]
"""The runs of a pass, by URL."""


def spread(passes: Sequence[Pass], n_places: int) -> list[Pass]:
    """Return at least as many passes as places, if there are so many runs.

    The largest pass is halved until then, so that passes are about equally large. Each
    more reads the data once more, in another place at the same time.
    """
    spread_out = list(passes)
    n_runs = sum(map(len, spread_out))
    while spread_out and len(spread_out) < min(n_places, n_runs):
        sizes = [len(one) for one in spread_out]
        largest = sizes.index(max(sizes))
        urls = list(spread_out[largest])
        middle = (len(urls) + 1) // 2
        halves = [
            {url: spread_out[largest][url] for url in half}
            for half in (urls[:middle], urls[middle:])
        ]
        spread_out[largest : largest + 1] = halves
    return spread_out
