"""TopK (Gao et al. 2024): f = the k largest of ReLU((x - b_dec) W_enc + b_enc), x' = f
W_dec + b_dec.

AuxK: the `aux_k` strongest latents among the dead try to explain the error e = x - x';
their own error |e - e'|^2, times `aux_coefficient`, is added to the loss. Decoder rows
are kept at norm 1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from schemas.sae import TopK
from trainer.kernels.sparse_products import decoded
from trainer.saes.encoder_init import begin_at, fitted
from trainer.saes.ops import (
    Centre,
    Layer,
    Penalty,
    ScaledRows,
    Shape,
    Step,
    encoder_input,
    first_encoder,
    mean,
    normalise_rows,
    of_layer,
    remove_parallel,
    squared_error,
    unit_rows,
)
from trainer.saes.sparse_codes import Encoder, fired, top_k


class TopKSae(nn.Module):
    """W_enc [d, m], b_enc [m], W_dec [m, d_out], b_dec [d_out] or [n_sites, d_out]."""

    unit_decoder = True

    def __init__(self, spec: TopK, shape: Shape) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = (
            spec,
            shape,
            shape.d,
            spec.size(shape.d),
        )
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, shape.out)))
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape, by_latent=True))
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(shape.bias(spec.per_layer_bias)))

    @property
    def firing_bias(self) -> Tensor:
        """[m]: raised, a latent fires more often."""
        return self.b_enc

    @property
    def encoder(self) -> Tensor:
        """[d, m]."""
        return self.W_enc

    @property
    def encoder_bias(self) -> Tensor:
        """[m]."""
        return self.b_enc

    def pre_activations(self, x: Tensor, layer: Layer = None) -> Tensor:
        """[B, m], before the selection."""
        return encoder_input(x, self.b_dec, layer, self.shape) @ self.W_enc + self.b_enc

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents of pre-activations [B, m], dense."""
        return top_k(pre, self.spec.k)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d], dense."""
        return self.activate(self.pre_activations(x, layer))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (k is the sparsity)
        """Loss on rows; `dead` bool [m] are the latents AuxK may use."""
        encoder = Encoder(rows, self.W_enc, self.b_enc, self.b_dec, self.shape)
        values, pattern = encoder.top_k(self.spec.k)
        reconstruction = decoded(
            values, self.W_dec, pattern, of_layer(self.b_dec, rows.layer)
        )
        parts = {"mse": squared_error(rows.wanted, reconstruction)}
        loss = parts["mse"]
        if self.spec.aux_coefficient:
            aux = encoder.aux_k(
                rows.wanted - reconstruction, dead, self.spec.aux_k, self.W_dec
            )
            if aux is not None:
                parts["aux"] = aux
                loss = loss + self.spec.aux_coefficient * aux
        counts = fired(values, pattern)
        return Step(loss, reconstruction, counts, counts.sum() / len(rows.x), parts)

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        remove_parallel(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(self) -> None:
        """Behind the optimiser's step."""
        normalise_rows(self.W_dec)

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Decoder bias, directions and the encoder's length from rows (`start`)."""
        middle, fit = begin_at(
            rows, self.W_dec, self.W_enc, self.b_dec, centre, from_data
        )
        if rows.target is not None:
            self.b_enc.copy_(-middle @ self.W_enc)
        codes = partial(top_k, k=self.spec.k)
        scale = fitted(
            lambda part: self.pre_activations(part.x, part.layer),
            codes,
            self.W_dec,
            fit,
            self.b_dec,
        )
        self.W_enc.mul_(scale)
        self.b_enc.mul_(scale)
