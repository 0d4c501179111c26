"""BatchTopK (Bussmann et al. 2024): f = the k * B largest of ReLU((x - b_dec) W_enc +
b_enc) over a batch of B rows.

Outside training a row must not depend on its batch: f = z where z > threshold, the
running mean over training of the smallest value that a batch's selection kept (of each
layer's rows, with `per_layer_threshold`). AuxK as in `topk`; decoder rows are kept at
norm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import BatchTopK
from trainer.kernels.nonzeros import Chosen
from trainer.kernels.sparse_products import decoded
from trainer.saes.encoder_init import begin_at, fitted, level
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
from trainer.saes.sparse_codes import Encoder, fired, lowest, running_mean


class BatchTopKSae(nn.Module):
    """W_enc [d, m], b_enc [m], W_dec [m, d_out], b_dec [d_out] or [n_sites, d_out];
    threshold [1] or [n_sites].
    """

    unit_decoder = True
    threshold: Tensor
    updates: Tensor

    def __init__(self, spec: BatchTopK, shape: Shape) -> None:
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
        n_thresholds = shape.n_sites if spec.per_layer_threshold else 1
        self.register_buffer("threshold", torch.zeros(n_thresholds))
        self.register_buffer("updates", torch.zeros(n_thresholds))
        # of the last training step; it enters the threshold with the update
        self._lowest: Tensor | None = None

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

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """By how much pre-activations are above where latents begin to fire: [B, m]."""
        return self.pre_activations(x, layer) - self.threshold_of(layer)

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Latents of pre-activations [B, m] by the threshold."""
        return torch.where(pre > self.threshold_of(layer), pre, 0.0)

    def threshold_of(self, layer: Layer = None) -> Tensor:
        """[1], or that of each row's layer [B, 1]."""
        return (
            of_layer(self.threshold[:, None], layer)
            if self.spec.per_layer_threshold
            else self.threshold
        )

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d], each row for itself."""
        return self.activate(self.pre_activations(x, layer), layer)

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def choose(self, rows: ScaledRows, encoder: Encoder | None = None) -> Chosen:
        """The selection of a batch, whose training step may then be computed in parts."""
        encoder = encoder or Encoder(
            rows, self.W_enc, self.b_enc, self.b_dec, self.shape
        )
        chosen = encoder.batch_top_k(self.spec.k * len(rows.x))
        layer = rows.layer if self.spec.per_layer_threshold else None
        self._lowest = lowest(*chosen, layer, len(self.threshold))
        return chosen

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (k is the sparsity)
        """Loss on rows; `dead` bool [m] are the latents AuxK may use."""
        encoder = Encoder(rows, self.W_enc, self.b_enc, self.b_dec, self.shape)
        chosen = self.choose(rows, encoder) if rows.chosen is None else rows.chosen
        values, pattern = encoder.at(chosen), chosen.pattern
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
        if self._lowest is not None:
            running_mean(
                self.threshold, self.updates, self._lowest, self.spec.threshold_decay
            )

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

        def pre(part: ScaledRows) -> Tensor:
            return self.pre_activations(part.x, part.layer)

        least = level(pre, fit, self.spec.k)
        scale = fitted(
            pre,
            lambda values: torch.where(values > least, values, 0.0),
            self.W_dec,
            fit,
            self.b_dec,
        )
        self.W_enc.mul_(scale)
        self.b_enc.mul_(scale)
