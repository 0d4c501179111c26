"""Gated SAE (Rajamanoharan et al. 2024): which latents are active, and how strongly.

From "Improving dictionary learning with gated sparse autoencoders". gate = (x - b_dec)
W_enc + b_gate; magnitude = ReLU(exp(r_mag) * (x - b_dec) W_enc + b_mag); f = magnitude
where gate > 0; x' = f W_dec + b_dec. Loss = |x - x'|^2 + l1 * sum ReLU(gate) + |x -
(ReLU(gate) W_dec + b_dec)|^2, with W_dec and b_dec constants in the last term, which
alone trains the gate. Decoder rows are kept at norm 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from schemas.sae import Gated
from trainer.kernels.dense_encoder import in_cache
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import first_l0, limits
from trainer.saes.flat_sae import FlatSae, above
from trainer.saes.registry import Kind, StepMemory, register
from trainer.saes.scaled_rows import Layer, ScaledRows, of_layer
from trainer.saes.shape import Shape, first_encoder
from trainer.saes.step import Penalty, Step, squared_error


class Gates(torch.autograd.Function):
    """Computes latents, the gate's ReLU and their sums from the gate's pre-activations.

    On a CPU it goes block by block, each while it is in cache. The gradients of the
    first two results are overwritten: use each once, in a product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        r_mag: Tensor,
        b_gate: Tensor,
        b_mag: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute one batch.

        Args:
            ctx: Autograd's.
            gate: [B, m].
            r_mag: [m].
            b_gate: [m].
            b_mag: [m].

        Returns:
            ReLU(gate) [B, m]; latents [B, m]; the mean over rows of the sum of
            ReLU(gate), a scalar; on how many rows each latent is above 0, int64 [m].
        """
        scale = r_mag.exp()
        # (x W_enc) is gate - b_gate, so the magnitude is scale * gate + start
        factor = scale.to(gate.dtype)
        start = (b_mag - scale * b_gate).to(gate.dtype)
        if torch.compiler.is_compiling():
            # torch 2.11's compiler gives no gradient to results that are written into
            opened = gate.relu()
            latents = torch.addcmul(start, factor, gate).relu() * (gate > 0)
            fired = (latents > 0).sum(dim=0)
            ctx.save_for_backward(gate, latents, scale, b_gate)
            ctx.mark_non_differentiable(fired)
            total = opened.sum(dtype=r_mag.dtype)
            return opened, latents, total / max(1, len(gate)), fired
        opened = torch.empty_like(gate)
        latents = torch.empty_like(gate)
        fired = torch.zeros(gate.shape[1], dtype=torch.int64, device=gate.device)
        total = torch.zeros((), dtype=r_mag.dtype, device=gate.device)
        blocks = zip(
            in_cache(gate),
            in_cache(opened),
            in_cache(latents),
            strict=True,
        )
        for gate_block, opened_block, latents_block in blocks:
            torch.clamp_min(gate_block, 0, out=opened_block)
            torch.addcmul(start, factor, gate_block, out=latents_block)
            latents_block.relu_().mul_(gate_block > 0)
            fired += (latents_block > 0).sum(dim=0, dtype=torch.int32)
            total += opened_block.sum(dtype=total.dtype)
        ctx.save_for_backward(gate, latents, scale, b_gate)
        ctx.mark_non_differentiable(fired)
        mean_sum = total / max(1, len(gate))
        return opened, latents, mean_sum, fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of gate [B, m], and of r_mag, b_gate and b_mag [m]."""
        gate, latents, scale, b_gate = ctx.saved_tensors
        of_opened = gradients[0].contiguous()
        of_latents = gradients[1].contiguous()
        # the sum's gradient is the same for every open gate
        of_each = gradients[2] / max(1, len(gate))
        of_each = of_each.to(gate.dtype)
        factor = scale.to(gate.dtype)
        of_start = torch.zeros_like(scale)
        of_scale = torch.zeros_like(scale)
        blocks = zip(
            in_cache(gate),
            in_cache(latents),
            in_cache(of_opened),
            in_cache(of_latents),
            strict=True,
        )
        for gate_block, latents_block, of_gate, of_magnitude in blocks:
            of_magnitude.mul_(latents_block > 0)
            of_start += of_magnitude.sum(dim=0, dtype=of_start.dtype)
            of_scale += (of_magnitude * gate_block).sum(dim=0, dtype=of_scale.dtype)
            # in place: what came as the gradient of `opened` becomes that of `gate`
            of_gate.add_(of_each).mul_(gate_block > 0).addcmul_(of_magnitude, factor)
        # Through magnitude = scale * gate + b_mag - scale * b_gate, with scale =
        # exp(r_mag): b_mag' = start', b_gate' = -scale * start', and scale' = sum of
        # gate * magnitude' - b_gate * start'.
        of_r_mag = scale * (of_scale - b_gate * of_start)
        of_b_gate = -scale * of_start
        return of_opened, of_r_mag, of_b_gate, of_start


class GatedSae(FlatSae):
    """An SAE whose latents are let through by gates.

    Attributes:
        W_enc: [d, m], of gates and magnitudes.
        b_gate: [m].
        b_mag: [m].
        r_mag: [m], the logarithm of a magnitude's slope over its gate's.
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
    """

    latent_axis: ClassVar[dict[str, int]] = {
        "W_dec": 0,
        "W_enc": 1,
        "b_gate": -1,
        "b_mag": -1,
        "r_mag": -1,
    }

    def __init__(self, spec: Gated, shape: Shape) -> None:
        super().__init__(spec, shape)
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape))
        self.b_gate = self.zeros()
        self.b_mag = self.zeros()
        self.r_mag = self.zeros()
        self.b_dec = self.decoder_bias()

    @property
    def firing_bias(self) -> Tensor:
        """[m]: raised, a latent fires more often."""
        return self.b_gate

    @property
    def encoder_bias(self) -> Tensor:
        """The bias of the gates, [m]."""
        return self.b_gate

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return by how much gates are above where latents begin to fire: [B, m].

        -inf where the magnitude is 0 at any gate's bias, since it does not depend on
        it.
        """
        gate = self.pre_activations(x, layer)
        return gate.masked_fill(self.magnitude(gate) == 0, -torch.inf)

    def magnitude(self, gate: Tensor) -> Tensor:
        """Return magnitudes [B, m] from the gate's pre-activations [B, m].

        Both are of the same product, so `b_gate` is taken out again.
        """
        product = gate - self.b_gate
        return torch.addcmul(self.b_mag, self.r_mag.exp(), product).relu()

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return latents [B, m] from the gate's pre-activations [B, m]."""
        return torch.where(pre > 0, self.magnitude(pre), 0.0)

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,  # noqa: ARG002 (nothing for the dead)
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows; `penalty` is the weight of its sparsity term.

        Arguments are those of `FlatSae.training_step`; `dead`, bool [m], is not used.
        """
        gate = self.dense_pre_activations(rows, parts)
        opened, latents, l1, fired = Gates.apply(
            gate, self.r_mag, self.b_gate, self.b_mag
        )  # type: ignore[no-untyped-call]
        # both in one exchange between processes
        decoded, decoded_gates = parts.summed_together(
            [latents @ self.W_dec, opened @ self.W_dec.detach()]
        )
        reconstruction = decoded + of_layer(self.b_dec, rows.layer)
        # the decoder is a constant here: this term trains the gate alone
        by_gates = decoded_gates + of_layer(self.b_dec.detach(), rows.layer)
        terms = {
            "mse": squared_error(rows.wanted, reconstruction),
            "l1": parts.summed(l1),
            "aux": squared_error(rows.wanted, by_gates),
        }
        loss = terms["mse"] + penalty * terms["l1"] + terms["aux"]
        l0 = parts.count(fired.sum()) / len(rows.x)
        return Step(loss, reconstruction, fired, l0, terms)

    @torch.no_grad()
    def lift_biases(self, latents: Tensor, by: float) -> None:
        """Make some latents fire more often: `latents` bool [m].

        The magnitude may be what keeps one at 0, so its bias is lifted too.
        """
        super().lift_biases(latents, by)
        self.b_mag.add_(latents, alpha=by)

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set the decoder's bias, directions, thresholds and the encoder's length."""
        assert self.W_enc is not None
        _, fit = self.begin_at(rows, centre, from_data)
        threshold = limits(self.pre_on, fit, first_l0(self.spec)).threshold
        scale = self.fitted(above(threshold), fit)
        self.W_enc.mul_(scale)
        # magnitudes begin as if there were no gate, which opens at the threshold
        self.b_mag.copy_(scale * self.b_gate)
        self.b_gate.copy_(scale * (self.b_gate - threshold))


register(
    Kind(
        Gated,
        GatedSae,
        learning_rate=1.05e-2,
        starting_penalty=0.2,
        step_memory=lambda _: StepMemory(7.7),
        saelens="gated",
        imported=True,
    )
)
