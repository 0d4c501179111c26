"""JumpReLU (Rajamanoharan et al. 2024, "Jumping ahead"): f = z where z > threshold, z =
(x - b_dec) W_enc + b_enc.

Loss = |x - x'|^2 + l0 * (latents above their thresholds). Thresholds are positive and
learnt as logarithms, with the paper's pseudo-derivatives: with K(u) = 1 for |u| < 1/2
and a bandwidth e, d f / d threshold = -(threshold / e) K((z - threshold) / e), d step /
d threshold = -(1 / e) K((z - threshold) / e). Decoder rows are kept at norm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from schemas.sae import JumpRelu
from trainer.kernels.dense_encoder import affine, in_cache
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

LEAST_THRESHOLD = 1e-2


class Jump(torch.autograd.Function):
    """(z [B, m], threshold [m] or [B, m], bandwidth) to (f [B, m], active latents per
    row: scalar, and on how many rows each latent is active: int64 [m]). On a CPU block
    by block, each while it is in cache. The gradient of f is overwritten: use f once,
    in a product.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        latents, fired = (
            torch.empty_like(z),
            torch.zeros(z.shape[1], dtype=torch.int64, device=z.device),
        )
        for values, out, limit in zip(
            in_cache(z), in_cache(latents), _limits(threshold, z), strict=True
        ):
            active = values > limit
            torch.mul(values, active, out=out)  # a mask's fill is many times slower
            fired += active.sum(dim=0, dtype=torch.int32)
        ctx.mark_non_differentiable(fired)
        return latents, fired.sum().to(threshold.dtype) / max(1, len(z)), fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        of_f, of_count = gradients[0].contiguous(), gradients[1] / max(1, len(z))
        of_threshold = torch.zeros_like(threshold)
        sums = (
            in_cache(of_threshold, like=z)
            if threshold.ndim > 1
            else [of_threshold] * len(in_cache(z))
        )
        for values, of, limit, add in zip(
            in_cache(z), in_cache(of_f), _limits(threshold, z), sums, strict=True
        ):
            near = (values - limit).abs_() < ctx.bandwidth / 2
            pulled = (limit * of).add_(of_count).mul_(near)
            add.sub_(pulled if threshold.ndim > 1 else pulled.sum(dim=0))
            of.mul_(values > limit)
        return of_f, of_threshold / ctx.bandwidth, None


def _limits(threshold: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """A threshold for each block of z."""
    return (
        in_cache(threshold, like=z)
        if threshold.ndim > 1
        else (threshold,) * len(in_cache(z))
    )


class JumpReluSae(nn.Module):
    """W_enc [d, m], b_enc [m], W_dec [m, d_out], b_dec [d_out], log_threshold [m];
    b_dec and log_threshold may be there once for each layer: [n_sites, ...].
    """

    unit_decoder = True

    def __init__(self, spec: JumpRelu, shape: Shape) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = (
            spec,
            shape,
            shape.d,
            spec.size(shape.d),
        )
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, shape.out)))
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape))
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(shape.bias(spec.per_layer_bias)))
        thresholds = (
            (shape.n_sites, self.n_latents)
            if spec.per_layer_threshold
            else (self.n_latents,)
        )
        self.log_threshold = nn.Parameter(
            torch.full(thresholds, spec.threshold or LEAST_THRESHOLD).log()
        )

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

    @property
    def threshold(self) -> Tensor:
        """[m] or [n_sites, m]."""
        return self.log_threshold.exp()

    def pre_activations(self, x: Tensor, layer: Layer = None) -> Tensor:
        """[B, m]."""
        return encoder_input(x, self.b_dec, layer, self.shape) @ self.W_enc + self.b_enc

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """As logarithms, by how much pre-activations are above where latents begin to
        fire: [B, m].
        """
        return (
            self.pre_activations(x, layer).relu() / of_layer(self.threshold, layer)
        ).log()

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Latents of pre-activations [B, m]."""
        return torch.where(pre > of_layer(self.threshold, layer), pre, 0.0)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return self.activate(self.pre_activations(x, layer), layer)

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows; `penalty` is its weight."""
        shift = None if self.shape.d_out is not None else self.b_dec
        pre = affine(rows.x, shift, rows.layer, self.W_enc, self.b_enc)
        threshold = of_layer(self.threshold, rows.layer)
        latents, count, fired = Jump.apply(pre, threshold, self.spec.bandwidth)  # type: ignore[no-untyped-call]
        reconstruction = self.decode(latents, rows.layer)
        mse = squared_error(rows.wanted, reconstruction)
        loss = mse + penalty * count
        return Step(loss, reconstruction, fired, count.detach(), {"mse": mse})

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
        """Decoder bias, directions, thresholds and the encoder's length from rows
        (`start`).
        """
        middle, fit = begin_at(
            rows, self.W_dec, self.W_enc, self.b_dec, centre, from_data
        )
        if rows.target is not None:
            self.b_enc.copy_(-middle @ self.W_enc)

        def pre(part: ScaledRows) -> Tensor:
            return self.pre_activations(part.x, part.layer)

        threshold = limits(pre, fit, first_l0(self.spec)).threshold
        scale = fitted(
            pre,
            lambda values: torch.where(values > threshold, values, 0.0),
            self.W_dec,
            fit,
            self.b_dec,
        )
        self.W_enc.mul_(scale)
        self.b_enc.mul_(scale)
        first = (scale * threshold).clamp_min(LEAST_THRESHOLD)
        # biases take what the thresholds are not given
        if self.spec.threshold is not None:
            self.b_enc.add_(self.spec.threshold - first)
            first = torch.full_like(first, self.spec.threshold)
        self.log_threshold.copy_(first.log())
