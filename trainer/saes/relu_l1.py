"""The standard SAE: f = ReLU((x - b_dec) W_enc + b_enc), x' = f W_dec + b_dec, loss =
|x - x'|^2 + l1 * sum f.

Decoder rows are kept at norm 1 (methods, sections 2 and 3): the part of their gradient
that changes the norm is taken out before the optimiser's step, and they are normalised
after it. `tied` uses W_enc = W_dec transposed. With the penalty `decoder_norm`, l1 *
sum_i f_i |W_dec,i| leaves the norms free (Anthropic, Circuits Updates, April 2024); in
a crosscoder |W_dec,i| is the sum of the norms at its sites (Lindsey et al. 2024).

`decoder_similarity` adds that weight times the mean over pairs of 256 sampled latents
of ReLU(cos - similar_above)^2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import ReluL1
from trainer.kernels.dense_encoder import relu_codes
from trainer.saes.encoder_init import begin_at, first_l0, fitted, limits
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
from trainer.saes.step_noise import Draws

SAMPLED = 256
STAGE = 31


class ReluL1Sae(nn.Module):
    """W_enc [d, m] (absent when tied), b_enc [m], W_dec [m, d_out], b_dec [d_out] or
    [n_sites, d_out].
    """

    def __init__(self, spec: ReluL1, shape: Shape, seed: int) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = (
            spec,
            shape,
            shape.d,
            spec.size(shape.d),
        )
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, shape.out)))
        self.W_enc = (
            None if spec.tied else nn.Parameter(first_encoder(self.W_dec, shape))
        )
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(shape.bias(spec.per_layer_bias)))
        self.draws = Draws(seed, STAGE) if spec.decoder_similarity else None

    @property
    def firing_bias(self) -> Tensor:
        """[m]: raised, a latent fires more often."""
        return self.b_enc

    @property
    def encoder(self) -> Tensor:
        """[d, m]."""
        return self.W_dec.T if self.W_enc is None else self.W_enc

    @property
    def encoder_bias(self) -> Tensor:
        """[m]."""
        return self.b_enc

    @property
    def unit_decoder(self) -> bool:
        """Whether decoder rows are kept at norm 1."""
        return self.spec.penalty == "l1"

    @property
    def latent_norms(self) -> Tensor:
        """Norm of each decoder row, summed over a crosscoder's sites: [m]."""
        norms: Tensor = (
            self.W_dec.unflatten(1, (self.shape.parts, -1)).norm(dim=2).sum(dim=1)
        )
        return norms

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents of pre-activations [B, m]."""
        return pre.relu()

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """By how much pre-activations are above where latents begin to fire: [B, m]."""
        return (
            encoder_input(x, self.b_dec, layer, self.shape) @ self.encoder + self.b_enc
        )

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return self.activate(self.margins(x, layer))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows; `penalty` is its weight."""
        shift = None if self.shape.d_out is not None else self.b_dec
        latents, summed, fired = relu_codes(
            rows.x, shift, rows.layer, self.encoder, self.b_enc
        )
        reconstruction = self.decode(latents, rows.layer)
        l1 = (
            summed
            if self.spec.penalty == "l1"
            else (latents * self.latent_norms).sum(dim=-1).mean()
        )
        parts = {"mse": squared_error(rows.wanted, reconstruction), "l1": l1}
        loss = parts["mse"] + penalty * parts["l1"]
        if self.draws is not None:
            parts["similarity"] = self.similarity(
                self.W_dec.index_select(0, self.sampled(self.draws, self.n_latents))
            )
            loss = loss + self.spec.decoder_similarity * parts["similarity"]
        return Step(loss, reconstruction, fired, fired.sum() / len(rows.x), parts)

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        if self.unit_decoder:
            remove_parallel(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(self) -> None:
        """Behind the optimiser's step."""
        if self.unit_decoder:
            normalise_rows(self.W_dec)
        if self.draws is not None:
            self.draws.advance()

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Decoder bias, directions, thresholds and the encoder's length from rows
        (`start`).
        """
        middle, fit = begin_at(
            rows, self.W_dec, self.W_enc, self.b_dec, centre, from_data
        )
        if rows.target is not None:
            self.b_enc.copy_(-middle @ self.encoder)

        def pre(part: ScaledRows) -> Tensor:
            return self.margins(part.x, part.layer)

        threshold = limits(pre, fit, first_l0(self.spec)).threshold
        self.b_enc.sub_(threshold)
        if self.W_enc is not None:
            scale = fitted(pre, torch.relu, self.W_dec, fit, self.b_dec)
            self.W_enc.mul_(scale)
            self.b_enc.mul_(scale)

    def sampled(self, draws: Draws, n_latents: int) -> Tensor:
        """The latents that this update compares, of so many: int64 [n]."""
        device = self.W_dec.device
        return torch.randperm(
            n_latents, generator=draws.generator(device), device=device
        )[:SAMPLED]

    def similarity(self, rows: Tensor) -> Tensor:
        """Mean over pairs of decoder rows [n, d_out] of ReLU(cos - similar_above)^2."""
        unit, n = unit_rows(rows), len(rows)
        above = (unit @ unit.T - self.spec.similar_above).relu().square()
        return (above.sum() - above.diagonal().sum()) / max(1, n * (n - 1))
