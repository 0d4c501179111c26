"""Cosines between the latents of dictionaries, which never make their whole matrix.

Products are of blocks of decoder rows, 64 MiB of cosines at once, so that 98,304 times
49,152 latents take little more memory than the two decoders. Norms do not matter, so
rows may be in any units. A row whose norm is 0 or not finite has no direction: it is
nobody's match, its own cosine is NaN, and it is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.errors import RunError
from trainer.kernels.topk_select import largest

ROWS_AT_ONCE = 4096
"""Latents of each dictionary in one product: 64 MiB of float32."""
MOST_PAIRS = 20_000_000
"""Pairs above a threshold that are kept: 400 MB."""
BLOCK_BYTES = 64 << 20
"""Cosines of one product where the nearest ones are looked for."""


class Matches(NamedTuple):
    """For each latent of one dictionary, the most similar one of another.

    Attributes:
        latent: Its number in the other dictionary, int64 [m]; -1 where there is none.
        cosine: Its cosine, float32 [m]; NaN where a direction is zero or not finite.
    """

    latent: Tensor
    cosine: Tensor

    @property
    def without_direction(self) -> int:
        """How many latents have no cosine."""
        return int(self.cosine.isnan().sum())


class Pairs(NamedTuple):
    """Pairs of latents of two dictionaries, by ascending latent of the second.

    Attributes:
        a: Latents of the first, int64 [n].
        b: Latents of the second, int64 [n].
        cosine: float32 [n].
    """

    a: Tensor
    b: Tensor
    cosine: Tensor


class Nearest(NamedTuple):
    """The nearest latents of each latent, nearest first.

    Attributes:
        latent: Their numbers, int32 [m, n]; -1 where there are fewer than n.
        cosine: Their cosines, float32 [m, n]; NaN there.
    """

    latent: NDArray[np.int32]
    cosine: NDArray[np.float32]


def unit_directions(rows: Tensor) -> Tensor:
    """Return rows [n, d] with norm 1, float32; NaN where they have no direction."""
    wide = rows.float()
    norms = wide.norm(dim=1, keepdim=True)
    has_direction = (norms > 0) & norms.isfinite()
    return torch.where(has_direction, wide / norms, torch.nan)


def known_directions(rows: Tensor) -> Tensor:
    """Return the rows that have a direction, with norm 1, float32 [at most n, d]."""
    unit = unit_directions(rows)
    return unit[~unit[:, 0].isnan()]


def without_direction(rows: Tensor) -> int:
    """Return how many of rows [n, d] have no direction."""
    return len(rows) - len(known_directions(rows))


def max_cosine(a: Tensor, b: Tensor, block: int = ROWS_AT_ONCE) -> Matches:
    """Return for each latent of b the most similar one of a.

    Args:
        a: Decoder rows [m_a, d].
        b: Decoder rows [m_b, d].
        block: Rows of each in one product.
    """
    found = _none_so_far(len(b), b.device)
    for start_a, start_b, cosines in blocks_of_cosines(a, b, block):
        best, where = cosines.max(dim=1)
        _keep_better(found, start_b, best, where + start_a)
    return _finished(found)


def mutual_max_cosine(
    a: Tensor, b: Tensor, block: int = ROWS_AT_ONCE
) -> tuple[Matches, Matches]:
    """Return the most similar latent of a for each of b, and that of b for each of a.

    Each product is made once: this takes little longer than one `max_cosine`, whose
    arguments it has.
    """
    of_b = _none_so_far(len(b), b.device)
    of_a = _none_so_far(len(a), a.device)
    for start_a, start_b, cosines in blocks_of_cosines(a, b, block):
        best, where = cosines.max(dim=1)
        _keep_better(of_b, start_b, best, where + start_a)
        has_none = best.isnan()
        if bool(has_none.any()):
            cosines[has_none] = -torch.inf
        # Where the maximum of a column is takes long to find, so it is looked for
        # only where it is a new one.
        best = cosines.amax(dim=0)
        at = slice(start_a, start_a + len(best))
        better = (best > of_a.cosine[at]).nonzero()[:, 0]
        where = torch.zeros_like(of_a.latent[at])
        where[better] = cosines[:, better].argmax(dim=0)
        _keep_better(of_a, start_a, best, where + start_b)
    return _finished(of_b), _finished(of_a)


def _none_so_far(m: int, device: torch.device) -> Matches:
    """Return matches of m latents that have met none so far."""
    cosine = torch.full((m,), -torch.inf, device=device)
    return Matches(torch.full((m,), -1, dtype=torch.int64, device=device), cosine)


def _keep_better(so_far: Matches, start: int, best: Tensor, latent: Tensor) -> None:
    """Keep, in place, what is more similar than what there was.

    Args:
        so_far: The matches.
        start: The first latent that the others are of.
        best: Cosines [n].
        latent: Whose they are, int64 [n].
    """
    at = slice(start, start + len(best))
    # Strictly above: of equal ones the first stays. NaN is above nothing.
    is_better = best > so_far.cosine[at]
    so_far.cosine[at] = torch.where(is_better, best, so_far.cosine[at])
    so_far.latent[at] = torch.where(is_better, latent, so_far.latent[at])


def _finished(so_far: Matches) -> Matches:
    """Return matches with NaN where there is none, and no cosine beyond 1."""
    latent, cosine = so_far
    return Matches(latent, torch.where(latent < 0, torch.nan, cosine.clamp(-1, 1)))


def pairs_above(
    a: Tensor, b: Tensor, threshold: float, block: int = ROWS_AT_ONCE
) -> Pairs:
    """Return all pairs of latents whose cosine is above a threshold.

    Args:
        a: Decoder rows [m_a, d].
        b: Decoder rows [m_b, d].
        threshold: The threshold.
        block: Rows of each in one product.

    Raises:
        RunError: There are more than `MOST_PAIRS`.
    """
    found = []
    n_pairs = 0
    for start_a, start_b, cosines in blocks_of_cosines(a, b, block):
        at_b, at_a = (cosines > threshold).nonzero(as_tuple=True)
        n_pairs += len(at_a)
        if n_pairs > MOST_PAIRS:
            raise RunError(
                f"more than {MOST_PAIRS:,} pairs of latents have a cosine above"
                f" {threshold:g}; raise --threshold"
            )
        found.append(Pairs(at_a + start_a, at_b + start_b, cosines[at_b, at_a]))
    if not found:
        none = torch.zeros(0, dtype=torch.int64)
        return Pairs(none, none, torch.zeros(0))
    pairs = Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    order = torch.argsort(pairs.b * len(a) + pairs.a)
    return Pairs(*(part[order] for part in pairs))


@torch.no_grad()
def nearest(
    wanted: Tensor,
    among: Tensor,
    n: int,
    memory: int = BLOCK_BYTES,
    own: int | None = None,
) -> Nearest:
    """Return the n nearest directions of each direction.

    Args:
        wanted: Directions [m, d].
        among: Those that they are compared with, [m', d].
        n: How many.
        memory: Bytes that a block of cosines may take.
        own: The place of the first of `wanted` in `among`, where they are a part of it;
            no direction is its own neighbour then.
    """
    latent = np.full((len(wanted), n), -1, np.int32)
    cosine = np.full((len(wanted), n), np.nan, np.float32)
    n_found = min(n, len(among) - (own is not None))
    if n_found < 1:
        return Nearest(latent, cosine)
    columns = unit_directions(among)
    has_none = columns[:, 0].isnan()
    # Cosines, and room for what the search makes of them.
    size = max(1, min(ROWS_AT_ONCE, memory // (8 * len(among))))
    for first in range(0, len(wanted), size):
        rows = unit_directions(wanted[first : first + size])
        cosines = rows @ columns.T
        cosines[:, has_none] = -torch.inf
        cosines[rows[:, 0].isnan()] = -torch.inf
        if own is not None:
            places = torch.arange(len(rows), device=rows.device)
            cosines[places, own + first + places] = -torch.inf
        values, latents = largest(cosines, n_found)
        values, order = values.sort(dim=1, descending=True)
        latents = latents.gather(1, order)
        is_none = values.isinf()
        part = slice(first, first + len(rows))
        latent[part, :n_found] = latents.masked_fill(is_none, -1).cpu().numpy()
        shown = values.clamp(-1, 1).masked_fill(is_none, torch.nan)
        cosine[part, :n_found] = shown.cpu().numpy()
    return Nearest(latent, cosine)


@torch.no_grad()
def blocks_of_cosines(
    a: Tensor, b: Tensor, block: int = ROWS_AT_ONCE, *, later: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield where a block begins in a and in b, and its cosines [q, p], b by a.

    Cosines of a row without direction are NaN where it is of b, and below all others
    where it is of a. The last block of b and a may be smaller.

    Args:
        a: Decoder rows [m_a, d].
        b: Decoder rows [m_b, d].
        block: Rows of each in one product.
        later: Leave out blocks in which all rows of b come before those of a. Each
            pair of two rows of one dictionary, given as a and b, is then there with the
            later row as b's; within a block the other way round, too.
    """
    # b by a, since a maximum over contiguous numbers takes an eighth of the time.
    for start_b in range(0, len(b), block):
        rows_b = unit_directions(b[start_b : start_b + block])
        end = start_b + block if later else len(a)
        for start_a in range(0, min(end, len(a)), block):
            rows_a = unit_directions(a[start_a : start_a + block])
            cosines = rows_b @ rows_a.T
            has_none = rows_a[:, 0].isnan()
            if bool(has_none.any()):
                cosines[:, has_none] = -torch.inf
            yield start_a, start_b, cosines
