"""Compares directions by their cosines, block by block.

No [n, m] matrix of two dictionaries is ever held: blocks of it come and go.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.errors import RunError
from trainer.runs.trained_sae import TrainedSae

BLOCK = 2048  # rows of either side of a block of cosines


class Nearest(NamedTuple):
    """The nearest among other directions, of each direction.

    Attributes:
        cosine: The largest cosine, float32 [n].
        which: The number of the one it is with, int64 [n].
    """

    cosine: Tensor
    which: Tensor


def unit_directions(directions: Tensor) -> Tensor:
    """Return directions at norm 1, float32 [n, d]; one of norm 0 stays 0.

    A direction of norm 0 so has the cosine 0 with every other.
    """
    wide = directions.float()
    norms = wide.norm(dim=1, keepdim=True)
    return wide / torch.where(norms > 0, norms, 1)


def nearest_both_ways(one: Tensor, other: Tensor) -> tuple[Nearest, Nearest]:
    """Return the nearest in `other` of each of `one`, and the other way round.

    Args:
        one: Directions [n, d], not empty; their norms do not matter.
        other: Directions [m, d], not empty.
    """
    ones = unit_directions(one).split(BLOCK)
    others = unit_directions(other).split(BLOCK)
    of_one = _nothing_yet(len(one))
    of_other = _nothing_yet(len(other))
    for i, rows in enumerate(ones):
        for j, columns in enumerate(others):
            cosines = rows @ columns.T
            _take(of_one, i * BLOCK, cosines.max(dim=1), j * BLOCK)
            _take(of_other, j * BLOCK, cosines.max(dim=0), i * BLOCK)
    return of_one, of_other


def nearest(one: Tensor, other: Tensor) -> Nearest:
    """Return the nearest in `other` [m, d] of each of `one` [n, d]."""
    return nearest_both_ways(one, other)[0]


def random_directions(n: int, d: int, seed: tuple[int, ...]) -> Tensor:
    """Return directions drawn evenly from the unit sphere, float32 [n, d]."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    normal = rng.standard_normal((n, d), dtype=np.float32)
    return unit_directions(torch.from_numpy(normal))


def decoder_directions(sae: TrainedSae) -> Tensor:
    """Return the decoder of an SAE, [m, d].

    Raises:
        RunError: It is a crosscoder's, which has a direction for each of its sites.
    """
    if sae.of_all_sites:
        raise RunError(
            f"{sae.url}: wanted an SAE with one direction for each latent; a crosscoder"
            " has one for each site, so its latents have no single cosine"
        )
    return sae.decoder


def _nothing_yet(n: int) -> Nearest:
    return Nearest(torch.full((n,), -torch.inf), torch.zeros(n, dtype=torch.int64))


def _take(so_far: Nearest, first: int, block: Any, offset: int) -> None:
    """Take in the largest cosines of a block, in place.

    so_far: Of all directions; those of the block begin at `first`.
    block: values and indices [n_block], as torch.max returns them.
    offset: The number of the block's first direction on the other side.
    """
    values, indices = block
    part = slice(first, first + len(values))
    # Above and not equal: of equal cosines the first one is taken, as in one block.
    is_better = values > so_far.cosine[part]
    so_far.which[part] = torch.where(is_better, indices + offset, so_far.which[part])
    so_far.cosine[part] = torch.where(is_better, values, so_far.cosine[part])
