"""Random directions, and the floor that they set to largest cosines.

Cosines of learnt dictionaries say something only above it (docs/methods.md, section 4).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.cosines import max_cosine, unit_directions

FLOOR_STAGE = 7  # of the seed
PROBES = 1024  # random directions that the floor is the mean of
AT_ONCE = 4096  # random latents that are drawn at once


def random_directions(n: int, d: int, seed: tuple[int, ...]) -> Tensor:
    """Return directions drawn evenly from the unit sphere, float32 [n, d]."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    normal = rng.standard_normal((n, d), dtype=np.float32)
    return unit_directions(torch.from_numpy(normal))


def random_floor(n_latents: int, d: int, seed: int = 0) -> float:
    """Return the mean of the largest cosine with a dictionary of random directions.

    It depends on the dictionary's size and width alone, and not on what is compared
    with it, so it is the floor of every mean of largest cosines. It is estimated from
    `PROBES` random directions against one random dictionary, drawn in blocks.

    Args:
        n_latents: Size of the dictionary, m.
        d: Width.
        seed: Seed of the draws.
    """
    probes = random_directions(PROBES, d, (seed, FLOOR_STAGE))
    best = torch.full((PROBES,), -1.0)
    for block, first in enumerate(range(0, n_latents, AT_ONCE)):
        size = min(AT_ONCE, n_latents - first)
        latents = random_directions(size, d, (seed, FLOOR_STAGE, 1 + block))
        best = torch.maximum(best, max_cosine(latents, probes).cosine)
    return float(best.mean(dtype=torch.float64))
