"""Gated SAE (Rajamanoharan et al. 2024, "Improving dictionary learning with gated
sparse autoencoders").

gate = (x - b_dec) W_enc + b_gate; magnitude = ReLU(exp(r_mag) * (x - b_dec) W_enc +
b_mag); f = magnitude where gate > 0; x' = f W_dec + b_dec. Loss = |x - x'|^2 + l1 * sum
ReLU(gate) + |x - (ReLU(gate) W_dec + b_dec)|^2, with W_dec and b_dec constants in the
last term, which alone trains the gate. Decoder rows are kept at norm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from schemas.sae import Gated
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


class Gates(torch.autograd.Function):
    """(gate [B, m], r_mag, b_gate, b_mag [m]) to (ReLU(gate) [B, m], f [B, m], the mean
    over rows of the sum of ReLU(gate), and on how many rows each latent is above 0:
    int64 [m]). On a CPU block by block, each while it is in cache. The gradients of the
    first two are overwritten: use each once, in a product.
    """

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = r_mag.exp()
        factor, start = scale.to(gate.dtype), (b_mag - scale * b_gate).to(gate.dtype)
        opened, latents = torch.empty_like(gate), torch.empty_like(gate)
        fired = torch.zeros(gate.shape[1], dtype=torch.int64, device=gate.device)
        total = torch.zeros((), dtype=r_mag.dtype, device=gate.device)
        for values, above, out in zip(
            in_cache(gate), in_cache(opened), in_cache(latents), strict=True
        ):
            torch.clamp_min(values, 0, out=above)
            torch.addcmul(start, factor, values, out=out)
            out.relu_().mul_(values > 0)
            fired += (out > 0).sum(dim=0, dtype=torch.int32)
            total += above.sum(dtype=total.dtype)
        ctx.save_for_backward(gate, latents, scale, b_gate)
        ctx.mark_non_differentiable(fired)
        return opened, latents, total / max(1, len(gate)), fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gate, latents, scale, b_gate = ctx.saved_tensors
        of_opened, of_latents = (gradient.contiguous() for gradient in gradients[:2])
        of_each, factor = (
            (gradients[2] / max(1, len(gate))).to(gate.dtype),
            scale.to(gate.dtype),
        )
        of_start, of_scale = torch.zeros_like(scale), torch.zeros_like(scale)
        tensors = (gate, latents, of_opened, of_latents)
        for values, out, above, of in zip(
            *(in_cache(tensor) for tensor in tensors), strict=True
        ):
            of.mul_(out > 0)
            of_start += of.sum(dim=0, dtype=of_start.dtype)
            of_scale += (of * values).sum(dim=0, dtype=of_scale.dtype)
            above.add_(of_each).mul_(values > 0).addcmul_(of, factor)
        return (
            of_opened,
            scale * (of_scale - b_gate * of_start),
            -scale * of_start,
            of_start,
        )


class GatedSae(nn.Module):
    """W_enc [d, m], b_gate, b_mag and r_mag [m], W_dec [m, d_out], b_dec [d_out] or
    [n_sites, d_out].
    """

    unit_decoder = True

    def __init__(self, spec: Gated, shape: Shape) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = (
            spec,
            shape,
            shape.d,
            spec.size(shape.d),
        )
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, shape.out)))
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape))
        self.b_gate = nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.r_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(shape.bias(spec.per_layer_bias)))

    @property
    def firing_bias(self) -> Tensor:
        """[m]: raised, a latent fires more often."""
        return self.b_gate

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
        return (
            encoder_input(x, self.b_dec, layer, self.shape) @ self.W_enc + self.b_gate
        )

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """By how much gates are above where latents begin to fire: [B, m]; -inf where
        the magnitude is 0 at any gate's bias, since it does not depend on it.
        """
        gate = self.gate(x, layer)
        return gate.masked_fill(self.magnitude(gate) == 0, -torch.inf)

    def magnitude(self, gate: Tensor) -> Tensor:
        """Of the gate's pre-activations [B, m], from which `b_gate` is taken again."""
        return torch.addcmul(self.b_mag, self.r_mag.exp(), gate - self.b_gate).relu()

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents from the gate's pre-activations [B, m], of which the magnitude's are
        a function.
        """
        return torch.where(pre > 0, self.magnitude(pre), 0.0)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return self.activate(self.gate(x, layer))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows; `penalty` is its weight."""
        shift = None if self.shape.d_out is not None else self.b_dec
        gate = affine(rows.x, shift, rows.layer, self.W_enc, self.b_gate)
        opened, latents, l1, fired = Gates.apply(
            gate, self.r_mag, self.b_gate, self.b_mag
        )  # type: ignore[no-untyped-call]
        reconstruction = self.decode(latents, rows.layer)
        frozen = opened @ self.W_dec.detach() + of_layer(
            self.b_dec.detach(), rows.layer
        )
        parts = {
            "mse": squared_error(rows.wanted, reconstruction),
            "l1": l1,
            "aux": squared_error(rows.wanted, frozen),
        }
        loss = parts["mse"] + penalty * parts["l1"] + parts["aux"]
        return Step(loss, reconstruction, fired, fired.sum() / len(rows.x), parts)

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
            self.b_gate.copy_(-middle @ self.W_enc)

        def pre(part: ScaledRows) -> Tensor:
            return self.gate(part.x, part.layer)

        threshold = limits(pre, fit, first_l0(self.spec)).threshold
        scale = fitted(
            pre,
            lambda values: torch.where(values > threshold, values, 0.0),
            self.W_dec,
            fit,
            self.b_dec,
        )
        self.W_enc.mul_(scale)
        self.b_mag.copy_(scale * self.b_gate)
        self.b_gate.copy_(scale * (self.b_gate - threshold))
