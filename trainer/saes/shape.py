"""The sizes that the data gives an SAE, and what follows from them for its encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.saes.scaled_rows import Layer, of_layer
from trainer.saes.unit_rows import unit_rows


class Shape(NamedTuple):
    """Sizes that are not in a spec."""

    d: int
    """Width of a row."""
    d_out: int | None = None
    """Width of a transcoder's target; None for all others."""
    n_sites: int = 1
    """Layers of a mixture."""
    sites_per_row: int = 1
    """A crosscoder's row holds so many sites' vectors of d / sites_per_row, side by
    side."""
    latents_here: int | None = None
    """How many latents this process has of a dictionary that is split; None: all that
    the spec says."""

    @property
    def out(self) -> int:
        """Width of a reconstruction."""
        return self.d if self.d_out is None else self.d_out

    def bias(self, per_layer: bool) -> tuple[int, ...]:
        """Return the shape of a decoder bias."""
        return (self.n_sites, self.out) if per_layer else (self.out,)


def encoder_input(x: Tensor, b_dec: Tensor, layer: Layer, shape: Shape) -> Tensor:
    """Return x - b_dec; x for a transcoder, whose b_dec is in other coordinates.

    Args:
        x: [B, d].
        b_dec: [d], or [n_sites, d].
        layer: The layer of the rows.
        shape: Says whether it is a transcoder.
    """
    return x if shape.d_out is not None else x - of_layer(b_dec, layer)


def first_encoder(decoder: Tensor, shape: Shape, by_latent: bool = False) -> Tensor:
    """Return an encoder [d, m] to begin with, from a decoder [m, d_out].

    It is the decoder transposed; for a transcoder, whose decoder is of another site,
    random columns of norm 1.

    Args:
        decoder: [m, d_out].
        shape: Says whether it is a transcoder.
        by_latent: Columns are contiguous in memory, as the gradient of sparse codes
            comes; else rows, as that of a dense encoder does.
    """
    if shape.d_out is None:
        rows = decoder.detach().clone()
    else:
        rows = unit_rows(torch.randn(len(decoder), shape.d))
    return rows.T if by_latent else rows.T.contiguous()
