"""The decoders of runs as directions, in the units of training.

A site's own units differ by one positive factor, so cosines are the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actstore.figures.layer_order import short_site
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError
from trainer.runs.run_data import RunData
from trainer.runs.run_tensors import check_shapes
from trainer.runs.trained_sae import TrainedSae, load

WEIGHTS = "sae.safetensors"


class Directions(NamedTuple):
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


def directions_of(
    run: RunData, *, alive_only: bool = False, device: str = "cpu"
) -> Iterator[Directions]:
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
            yield Directions(short_site(site), decoder[:, place], kept, of_site)
        return
    name = short_site(sites[0]) if len(sites) == 1 else f"all {len(sites)} layers"
    yield Directions(name, decoder, kept, dict(zip(sites, factors, strict=True)))


def decoder_of(sae: TrainedSae) -> Tensor:
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


def read_decoder(run: str, record: RunRecord) -> Tensor:
    """Read the decoder of a run, float32 [m, d]; of local files without the encoder.

    Args:
        run: The run's folder.
        record: Its record, of an SAE with one direction for each latent.

    Raises:
        RunError: The weights are damaged or do not fit the record.
    """
    folder = Storage(run).local
    if folder is None:
        return load(run).decoder
    try:
        with safe_open(folder / WEIGHTS, "pt") as tensors:
            rows: Tensor = tensors.get_tensor("W_dec")
    except (OSError, SafetensorError):
        rows = load(run).decoder  # says what is wrong with the file
    d = record.d if record.d_out is None else record.d_out
    check_shapes({"W_dec": rows}, (record.n_latents, d), f"{run}/{WEIGHTS}")
    return rows.to(torch.float32)
