"""Builds the module of a spec, whichever kind it is of.

This is where the architectures' files are imported, by which they register themselves:
a new one is added to this list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.sae import SaeSpec
from trainer.errors import SaeError
from trainer.saes import (  # noqa: F401 (they register themselves)
    batch_topk,
    crosscoder,
    gated,
    jumprelu,
    matryoshka,
    mlp_encoder,
    nsae,
    relu_l1,
    topk,
    transcoder,
)
from trainer.saes.centres import Centre, mean
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import (
    every_kind,
    find,
    kind_importing,
    kind_of,
    kind_trained_on,
    latents_kind,
    named,
)
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.wrapper_sae import WrapperSae

__all__ = [
    "Sae",
    "build",
    "every_kind",
    "find",
    "initialise_from",
    "kind_importing",
    "kind_of",
    "kind_trained_on",
    "latents_kind",
    "latents_of",
    "named",
]

Sae = FlatSae | WrapperSae


def build(
    spec: SaeSpec,
    d: int,
    seed: int = 0,
    n_sites: int = 1,
    d_out: int | None = None,
    latents_here: int | None = None,
) -> Sae:
    """Return a fresh SAE.

    Args:
        spec: The kind and its options.
        d: Width of an activation.
        seed: The seed of the first weights, and of what is drawn in training.
        n_sites: Sites of a mixture or of a crosscoder's row.
        d_out: Width of a transcoder's target; None for others.
        latents_here: The number of latents that this process has of a dictionary that
            is split over processes; None for all.

    Raises:
        SaeError: The spec cannot work at that width.
    """
    kind = kind_of(spec)
    if (d_out is None) == (kind.to_other_site):
        raise SaeError(
            f"{spec.kind}: a transcoder, and nothing else, needs the width of a target;"
            f" d_out is {d_out}"
        )
    shape = Shape(d, d_out, n_sites, latents_here=latents_here)
    # The weights depend on the seed alone. The caller's random state stays as it is.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.sae.make(spec, shape, seed)


def initialise_from(
    sae: Sae,
    rows: ScaledRows | Tensor,
    centre: Centre = mean,
    from_data: bool = True,
) -> None:
    """Set an SAE's weights in place from rows; see `FlatSae.initialise`.

    rows: A tensor is [n, d], or [n, n_sites, d] for a crosscoder.
    """
    scaled = rows if isinstance(rows, ScaledRows) else ScaledRows(rows)
    sae.initialise(scaled, centre, from_data)


def latents_of(sae: Sae) -> FlatSae:
    """Return the part of an SAE that has the latents.

    That is `inner` of a transcoder or crosscoder, else all of it.
    """
    return sae.latents_part
