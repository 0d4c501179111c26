"""The dictionaries of a run: its decoder directions, and the layers they write to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from actstore.figures.layer_order import short_site
from trainer.errors import RunError
from trainer.runs.run_data import RunData
from trainer.runs.trained_sae import load


class Dictionary(NamedTuple):
    """All decoder directions of one SAE at some of its layers.

    Attributes:
        name: What it is called: its layer, or `all 6 layers`.
        rows: The directions in the SAE's own units, in which its rows have a mean
            square of 1 over all layers: float32 [m, d].
        latents: Which latents these are, int64 [m].
        factors: What a norm is multiplied by to be in the activation units of a layer,
            by site: the layer's decoder as `TrainedSae.fold` gives it has these norms.
    """

    name: str
    rows: Tensor
    latents: Tensor
    factors: dict[str, float]


def dictionaries_of(
    run: RunData, *, alive_only: bool = False, device: str = "cpu"
) -> Iterator[Dictionary]:
    """Yield the dictionaries of a run: of a crosscoder one for each site, else one.

    Args:
        run: The run.
        alive_only: Leave out latents that never fired on the rows evaluated.
        device: Where the directions go.

    Raises:
        RunError: A direction is not finite.
    """
    sae = load(run.url, device=device)
    if alive_only:
        kept = torch.nonzero(run.firings.sum(dim=0) > 0)[:, 0]
    else:
        kept = torch.arange(sae.n_latents)
    decoder = sae.decoder.detach().float()[kept.to(sae.decoder.device)]
    if not bool(torch.isfinite(decoder).all()):
        raise RunError(
            f"{run.url}: its decoder has directions that are not finite; train it again"
        )
    sites = [layer.site for layer in run.evaluation.layers]
    factors = [1 / scale for scale in sae.scale_out.tolist()]
    if sae.of_all_sites:
        for place, site in enumerate(sites):
            of_site = {site: factors[place]}
            yield Dictionary(short_site(site), decoder[:, place], kept, of_site)
        return
    name = short_site(sites[0]) if len(sites) == 1 else f"all {len(sites)} layers"
    yield Dictionary(name, decoder, kept, dict(zip(sites, factors, strict=True)))


def unit_rows(dictionary: Dictionary) -> Tensor:
    """Return the directions of norm 1, float32 [at most m, d]; those of norm 0 lack."""
    norms = dictionary.rows.norm(dim=1)
    has_length = norms > 0
    unit: Tensor = dictionary.rows[has_length] / norms[has_length, None]
    return unit
