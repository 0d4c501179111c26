"""Cosines between the latents of two dictionaries, which never make their matrix.

Products are of blocks of decoder rows, 64 MiB of cosines at once, so that 98,304 times
49,152 latents take little more memory than the two decoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.errors import RunError

ROWS_AT_ONCE = 4096
"""Latents of each dictionary in one product: 64 MiB of float32."""
MOST_PAIRS = 20_000_000
"""Pairs above a threshold that are kept: 400 MB."""
PROBES = 1024
"""Random directions from which the floor of the maximum cosine is estimated."""


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


def max_cosine(a: Tensor, b: Tensor, block: int = ROWS_AT_ONCE) -> Matches:
    """Return for each latent of b the most similar one of a.

    Args:
        a: Decoder rows [m_a, d].
        b: Decoder rows [m_b, d].
        block: Rows of each in one product.
    """
    found = _none_so_far(len(b), b.device)
    for start_a, start_b, cosines in _cosines(a, b, block):
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
    for start_a, start_b, cosines in _cosines(a, b, block):
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
    for start_a, start_b, cosines in _cosines(a, b, block):
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


def random_floor(n_latents: int, d: int, seed: int = 0) -> float:
    """Return the mean of the maximum cosine that random directions have.

    It is estimated from `PROBES` random directions against a random dictionary, drawn
    in blocks. Cosines of learnt dictionaries say something only above it.

    Args:
        n_latents: Size of the random dictionary.
        d: Width of a row.
        seed: Of the draws.
    """
    draws = np.random.default_rng(np.random.SeedSequence([seed, n_latents, d]))
    probes = torch.from_numpy(draws.standard_normal((PROBES, d), dtype=np.float32))
    best = torch.full((PROBES,), -1.0)
    for start in range(0, n_latents, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, n_latents - start)
        rows = torch.from_numpy(draws.standard_normal((size, d), dtype=np.float32))
        best = torch.maximum(best, max_cosine(rows, probes).cosine)
    return float(best.mean(dtype=torch.float64))


@torch.no_grad()
def _cosines(a: Tensor, b: Tensor, block: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield where a block begins in a and in b, and its cosines [q, p], b by a.

    Cosines of a row that is zero or not finite are NaN in a block of b, and below all
    others in one of a.
    """
    # b by a, since a maximum over contiguous numbers takes an eighth of the time.
    for start_b in range(0, len(b), block):
        rows_b = _unit(b[start_b : start_b + block])
        for start_a in range(0, len(a), block):
            rows_a = _unit(a[start_a : start_a + block])
            cosines = rows_b @ rows_a.T
            has_none = rows_a[:, 0].isnan()
            if bool(has_none.any()):
                cosines[:, has_none] = -torch.inf
            yield start_a, start_b, cosines


def _unit(rows: Tensor) -> Tensor:
    """Return rows [n, d] with norm 1, float32; NaN where they have no direction."""
    wide = rows.float()
    norms = wide.norm(dim=1, keepdim=True)
    has_direction = (norms > 0) & norms.isfinite()
    return torch.where(has_direction, wide / norms, torch.nan)
