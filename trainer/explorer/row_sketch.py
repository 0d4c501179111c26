"""A sample of rows with all their latents: which latents fire together, and at which
layers of the same token.

Counting pairs over all rows would take memory in the square of the dictionary. A sample
of tokens, each with its rows at all sites, is bounded: where it grows too large, the
half of it with the higher numbers (`hashed.py`) goes. So it does not depend on the
order of rows, and every token is as likely as any other to be in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.explorer.firings import Codes, Firings, joined
from trainer.explorer.hashed import hashed
from trainer.explorer.kept_firings import numbers_within

MOST_NONZEROS = 2_000_000
NONZERO_BYTES = 128  # with all that counting takes
MOST_PAIRS = 60_000_000  # pairs of latents that fire on one row: some ten seconds
_PAIRS_AT_ONCE = 1 << 18  # some 20 MB
LEAST_TOGETHER = 2  # rows on which two latents fire before they are shown together
STAGE = 71  # a part of the seed, so that no other draw shares it

Ints = NDArray[np.int64]


class Together(NamedTuple):
    """Latents that fire with others, by latent and then by cosine.

    Attributes:
        latent: int64 [n], ascending.
        other: The latent that fires with it, [n].
        cosine: Rows with both over the root of the product of rows with each, [n].
        share: Share of the latent's rows on which the other fires, [n].
    """

    latent: Ints
    other: Ints
    cosine: NDArray[np.float64]
    share: NDArray[np.float64]


class RowSketch:
    """The sample of rows.

    Attributes:
        share: The share of all tokens that are in it, in expectation.
    """

    def __init__(
        self,
        seed: int,
        most_nonzeros: int = MOST_NONZEROS,
        most_pairs: int = MOST_PAIRS,
    ) -> None:
        self.share = 1.0
        self._seed = STAGE + seed
        self._most_nonzeros = most_nonzeros
        self._most_pairs = most_pairs
        self._parts: list[Firings] = []
        self._nonzeros = 0
        self._pairs = 0

    def add(self, firings: Firings) -> None:
        """Take some of the rows into the sample."""
        part = self._sampled(firings)
        self._count(part)
        self._parts.append(part)
        while self._nonzeros > self._most_nonzeros or self._pairs > self._most_pairs:
            self.share /= 2
            parts = [self._sampled(one) for one in self._parts]
            self._parts = [one for one in parts if len(one.row_id)]
            self._nonzeros = 0
            self._pairs = 0
            for one in self._parts:
                self._count(one)

    def rows(self) -> Firings | None:
        """Return the sampled rows with their latents; None where there are none."""
        if not self._parts:
            return None
        self._parts = [joined(self._parts)]
        return self._parts[0]

    def _sampled(self, firings: Firings) -> Firings:
        if self.share == 1.0:
            return firings
        # By the row's id alone, so that a token is there with all its sites or none.
        taken = hashed(firings.row_id, self._seed) < self.share
        number = np.cumsum(taken) - 1
        codes = firings.codes
        kept = taken[codes.row]
        return Firings(
            firings.row_id[taken],
            firings.sequence[taken],
            firings.position[taken],
            firings.site[taken],
            Codes(number[codes.row[kept]], codes.latent[kept], codes.value[kept]),
        )

    def _count(self, part: Firings) -> None:
        per_row = np.bincount(part.codes.row)
        self._nonzeros += len(part.codes.row)
        self._pairs += int(np.square(per_row).sum())


def together(rows: Firings, n_latents: int, most: int) -> Iterator[Together]:
    """Yield the latents that fire with each latent, latents ascending.

    Args:
        rows: The sample.
        n_latents: m.
        most: How many of each latent.
    """
    codes = rows.codes
    order = np.argsort(codes.latent, kind="stable")
    latent = codes.latent[order].astype(np.int64)
    row = codes.row[order]
    per_row = np.bincount(codes.row, minlength=len(rows.row_id))
    row_start = np.cumsum(per_row) - per_row
    firings = np.bincount(codes.latent, minlength=n_latents)
    ends = np.cumsum(per_row[row])
    first = 0
    while first < len(latent):
        before = ends[first - 1] if first else 0
        end = int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right"))
        # Whole latents only, and at least one.
        end = max(end, first + 1)
        end = int(np.searchsorted(latent, latent[end - 1], "right"))
        part = slice(first, end)
        yield _together(
            latent[part], row[part], codes.latent, row_start, per_row, firings, most
        )
        first = end


def _together(
    latent: Ints,
    row: Ints,
    latents: NDArray[np.int32],
    row_start: Ints,
    per_row: Ints,
    firings: Ints,
    most: int,
) -> Together:
    """Return the same for some firings.

    latents: of all nonzeros, in the order of rows, which begin at `row_start`.
    """
    n_latents = len(firings)
    lengths = per_row[row]
    # The nonzeros of the row of each firing: 5, 6, 7 for a row that begins at 5.
    starts = np.repeat(row_start[row], lengths)
    within = np.arange(len(starts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    other = latents[starts + within].astype(np.int64)
    pair, both = np.unique(
        np.repeat(latent, lengths) * n_latents + other, return_counts=True
    )
    one = pair // n_latents
    other = pair % n_latents
    wanted = (one != other) & (both >= LEAST_TOGETHER)
    one = one[wanted]
    other = other[wanted]
    both = both[wanted]
    cosine = both / np.sqrt(firings[one] * firings[other].astype(np.float64))
    order = np.lexsort((other, -cosine, one))
    kept = order[numbers_within(one[order]) < most]
    return Together(one[kept], other[kept], cosine[kept], (both / firings[one])[kept])


def trajectories(
    rows: Firings, first: int, end: int, n_sites: int
) -> tuple[NDArray[np.float32], Ints]:
    """Return mean activations by layer, where a latent fires at some layer.

    Args:
        rows: The sample.
        first: The first latent that is wanted.
        end: The latent after the last one.
        n_sites: How many layers there are.

    Returns:
        Means over the same tokens at every layer, float32 [end - first, n_sites], NaN
        for a latent that fires on none; and on how many tokens it does, int64.
    """
    n_latents = end - first
    here = (rows.codes.latent >= first) & (rows.codes.latent < end)
    latent = rows.codes.latent[here].astype(np.int64) - first
    row = rows.codes.row[here]
    cell = latent * n_sites + rows.site[row]
    sums = np.bincount(cell, rows.codes.value[here], n_latents * n_sites)
    token = rows.row_id[row]
    order = np.lexsort((token, latent))
    differs = np.ones(len(order), bool)
    differs[1:] = (np.diff(latent[order]) != 0) | (np.diff(token[order]) != 0)
    tokens = np.bincount(latent[order][differs], minlength=n_latents)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.reshape(n_latents, n_sites) / tokens[:, None]
    return means.astype(np.float32), tokens
