"""Decoder directions as the explorer compares them: all sites of a latent together."""

from __future__ import annotations

from torch import Tensor

from trainer.errors import RunError
from trainer.runs.trained_sae import TrainedSae

NEAREST = 8  # latents that are shown as the nearest


def directions(sae: TrainedSae) -> Tensor:
    """Return decoder directions, float32 [m, d], of any norm.

    A crosscoder's are those of all its sites side by side.
    """
    return sae.decoder.flatten(1).float()


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
