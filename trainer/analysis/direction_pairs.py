"""Pairs of directions that point the same way with different norms.

From the document on the normalized SAE (docs/methods.md, section 2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.analysis.cosines import ROWS_AT_ONCE, blocks_of_cosines

SIMILAR = 0.9  # cosine from which two directions point the same way
NORMS_APART = 1.1  # their norms differ if the larger is so many times the smaller


class DirectionPairs(NamedTuple):
    """Pairs of rows that point the same way with different norms.

    Attributes:
        n: How many there are.
        latents: Which rows are in one, bool [m].
    """

    n: int
    latents: Tensor


def direction_pairs(rows: Tensor, block: int = ROWS_AT_ONCE) -> DirectionPairs:
    """Return the pairs of a cosine above 0.9 whose norms differ by more than 10 %.

    All pairs are looked at, each once.

    Args:
        rows: Directions, float32 [m, d]; those of norm 0 are in no pair.
        block: Rows whose cosines are in memory at once.
    """
    norms = rows.norm(dim=1)
    in_pair = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    n_pairs = 0
    for start, later_start, cosines in blocks_of_cosines(rows, rows, block, later=True):
        # Few are similar, so norms are compared of those alone.
        second, first = torch.nonzero(cosines > SIMILAR, as_tuple=True)
        first += start
        second += later_start
        is_later = second > first
        first = first[is_later]
        second = second[is_later]
        larger = torch.maximum(norms[first], norms[second])
        smaller = torch.minimum(norms[first], norms[second])
        apart = larger > NORMS_APART * smaller
        n_pairs += int(apart.sum())
        in_pair[first[apart]] = True
        in_pair[second[apart]] = True
    return DirectionPairs(n_pairs, in_pair.cpu())
