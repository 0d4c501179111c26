"""Gated SAE (Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders").

gate = (x - b_dec) W_enc + b_gate; magnitude = ReLU(exp(r_mag) * (x - b_dec) W_enc + b_mag); f = magnitude where
gate > 0; x' = f W_dec + b_dec. Loss = |x - x'|^2 + l1 * sum ReLU(gate) + |x - (ReLU(gate) W_dec + b_dec)|^2, with
W_dec and b_dec constants in the last term, which alone trains the gate. Decoder rows are kept at norm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import Gated
from trainer.kernels.dense import affine
from trainer.saes.ops import (
    Centre,
    Layer,
    Rows,
    Shape,
    Step,
    data_start,
    encoder_input,
    first_encoder,
    mean,
    normalise_rows,
    of_layer,
    remove_parallel,
    squared_error,
    unit_rows,
)


class GatedSae(nn.Module):
    """W_enc [d, m], b_gate, b_mag and r_mag [m], W_dec [m, d_out], b_dec [d_out] or [n_sites, d_out]."""

    unit_decoder = True

    def __init__(self, spec: Gated, shape: Shape) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = spec, shape, shape.d, spec.size(shape.d)
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, shape.out)))
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape))
        self.b_gate = nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.r_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(shape.bias(spec.per_layer_bias)))

    @property
    def encoder(self) -> Tensor:
        """[d, m]."""
        return self.W_enc

    @property
    def encoder_bias(self) -> Tensor:
        """The gate's, [m]."""
        return self.b_gate

    def gate(self, x: Tensor, layer: Layer = None) -> Tensor:
        """The gate's pre-activations [B, m]."""
        return encoder_input(x, self.b_dec, layer, self.shape) @ self.W_enc + self.b_gate

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents from the gate's pre-activations [B, m], of which the magnitude's are a function."""
        scale, gate, shift = (part.to(pre.dtype) for part in (self.r_mag.exp(), self.b_gate, self.b_mag))
        magnitude = torch.addcmul(shift, scale, pre - gate).relu()  # under autocast in its dtype: half the memory moved
        return torch.where(pre > 0, magnitude, 0.0)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return self.activate(self.gate(x, layer))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def training_step(self, rows: Rows, sparsity: float, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows; `sparsity` in [0, 1] is the warm-up of the penalty."""
        shift = None if self.shape.d_out is not None else self.b_dec
        gate = affine(rows.x, shift, rows.layer, self.W_enc, self.b_gate)
        opened, latents = gate.relu(), self.activate(gate)
        reconstruction = self.decode(latents, rows.layer)
        frozen = opened @ self.W_dec.detach() + of_layer(self.b_dec.detach(), rows.layer)
        parts = {
            "mse": squared_error(rows.wanted, reconstruction),
            "l1": opened.sum(dim=-1).mean(),
            "aux": squared_error(rows.wanted, frozen),
        }
        loss = parts["mse"] + self.spec.l1 * sparsity * parts["l1"] + parts["aux"]
        with torch.no_grad():
            fired = (latents > 0).sum(dim=0)
        return Step(loss, reconstruction, fired, fired.sum() / len(rows.x), parts)

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        remove_parallel(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(self) -> None:
        """Behind the optimiser's step."""
        normalise_rows(self.W_dec)

    def initialise(self, rows: Rows, centre: Centre = mean) -> None:
        """Decoder, encoder and decoder bias from data (methods, section 4)."""
        middle = data_start(rows, self.W_dec, self.W_enc, self.b_dec, centre)
        if rows.target is not None:
            self.b_gate.data.copy_(-middle @ self.W_enc)
            self.b_mag.data.copy_(self.b_gate)
