"""The latents whose decoder directions are nearest to each latent's, by cosine.

The matrix of all cosines is never there: a block of rows is multiplied, searched for
its largest entries, and overwritten.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.errors import RunError
from trainer.kernels.topk_select import largest
from trainer.runs.trained_sae import TrainedSae

NEAREST = 8


class Nearest(NamedTuple):
    """The nearest latents, nearest first; -1 and NaN where there are fewer.

    Attributes:
        latent: int32 [m, n].
        cosine: float32 [m, n].
    """

    latent: NDArray[np.int32]
    cosine: NDArray[np.float32]


def directions(sae: TrainedSae) -> Tensor:
    """Return decoder directions of length 1, float32 [m, d]; 0 for one without length.

    A crosscoder's are those of all its sites side by side.
    """
    flat = sae.decoder.flatten(1).float()
    norms = flat.norm(dim=1, keepdim=True)
    # Not by a clamp: a direction that is tiny has a cosine, too.
    return torch.where(norms > 0, flat / norms, 0.0)


def decoder_norms(sae: TrainedSae) -> Tensor:
    """Return the norms of decoder directions at each site that they write to, [m, n].

    n is 1, but for a crosscoder.
    """
    by_site = sae.decoder if sae.of_all_sites else sae.decoder[:, None]
    norms: Tensor = by_site.norm(dim=2)
    return norms


def check_widths(sae: TrainedSae, other: TrainedSae) -> None:
    """Check that the directions of two SAEs can be compared.

    Raises:
        RunError: They are of different widths.
    """
    here = sae.decoder.flatten(1).shape[1]
    there = other.decoder.flatten(1).shape[1]
    if here != there:
        raise RunError(
            f"--beside {other.url}: its decoder directions are of width {there}, those"
            f" of {sae.url} of {here}, so there is no cosine; leave it out"
        )


@torch.no_grad()
def nearest(
    wanted: Tensor, among: Tensor, n: int, memory: int, own: int | None = None
) -> Nearest:
    """Return the n nearest directions of each direction.

    Args:
        wanted: Directions of length 1, or 0, [m, d].
        among: Those that they are compared with, [m', d].
        n: How many.
        memory: Bytes that a block of cosines may take.
        own: The place of the first of `wanted` in `among`, where they are a part of it;
            no direction is its own neighbour then.
    """
    n_found = min(n, len(among) - (own is not None))
    latent = np.full((len(wanted), n), -1, np.int32)
    cosine = np.full((len(wanted), n), np.nan, np.float32)
    if n_found < 1:
        return Nearest(latent, cosine)
    size = max(1, min(4096, memory // (8 * len(among))))
    has_length = among.norm(dim=1) > 0
    for first in range(0, len(wanted), size):
        block = wanted[first : first + size]
        cosines = block @ among.T
        cosines.masked_fill_(~has_length, -torch.inf)
        if own is not None:
            rows = torch.arange(len(block), device=block.device)
            cosines[rows, own + first + rows] = -torch.inf
        values, latents = largest(cosines, n_found)
        order = values.argsort(dim=1, descending=True)
        values = values.gather(1, order)
        there = values.isfinite() & (block.norm(dim=1, keepdim=True) > 0)
        part = slice(first, first + len(block))
        found = torch.where(there, latents.gather(1, order), -1)
        latent[part, :n_found] = found.cpu().numpy()
        shown = torch.where(there, values, torch.nan)
        cosine[part, :n_found] = shown.cpu().numpy()
    return Nearest(latent, cosine)
