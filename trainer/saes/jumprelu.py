"""JumpReLU (Rajamanoharan et al. 2024): each latent learns the threshold it fires at.

From "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
autoencoders". f = z where z > threshold, else 0; z = (x - b_dec) W_enc + b_enc.

Loss = |x - x'|^2 + l0 * (latents above their thresholds). Thresholds are positive and
learnt as logarithms, with the paper's pseudo-derivatives: with K(u) = 1 for |u| < 1/2
and a bandwidth e, d f / d threshold = -(threshold / e) K((z - threshold) / e), d step /
d threshold = -(1 / e) K((z - threshold) / e). Decoder rows are kept at norm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from schemas.sae import JumpRelu
from trainer.kernels.dense_encoder import in_cache
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import first_l0, limits
from trainer.saes.flat_sae import FlatSae, above
from trainer.saes.registry import Kind, StepMemory, register
from trainer.saes.scaled_rows import Layer, ScaledRows, of_layer
from trainer.saes.shape import Shape, first_encoder
from trainer.saes.step import Penalty, Step, squared_error

# The least that thresholds begin with: one of 0 would have no logarithm.
LEAST_THRESHOLD = 1e-2


class Jump(torch.autograd.Function):
    """Computes latents, and how many are active, from pre-activations and thresholds.

    On a CPU it goes block by block, each while it is in cache. The gradient of the
    latents is overwritten: use them once, in a product.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute one batch.

        Args:
            ctx: Autograd's.
            z: Pre-activations [B, m].
            threshold: [m], or [B, m].
            bandwidth: Width of the kernel of the pseudo-derivatives.

        Returns:
            Latents [B, m]; active latents per row, a scalar; on how many rows each
            latent is active, int64 [m].
        """
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        if torch.compiler.is_compiling():
            # torch 2.11's compiler gives no gradient to results that are written into
            active = z > threshold
            fired = active.sum(dim=0)
            ctx.mark_non_differentiable(fired)
            n_active = fired.sum().to(threshold.dtype)
            return z * active, n_active / max(1, len(z)), fired
        latents = torch.empty_like(z)
        fired = torch.zeros(z.shape[1], dtype=torch.int64, device=z.device)
        blocks = zip(
            in_cache(z),
            in_cache(latents),
            _limits(threshold, z),
            strict=True,
        )
        for z_block, latents_block, limit in blocks:
            active = z_block > limit
            # a mask's fill is many times slower than a product
            torch.mul(z_block, active, out=latents_block)
            fired += active.sum(dim=0, dtype=torch.int32)
        ctx.mark_non_differentiable(fired)
        n_active = fired.sum().to(threshold.dtype)
        return latents, n_active / max(1, len(z)), fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of z [B, m] and of threshold [m] or [B, m]."""
        z, threshold = ctx.saved_tensors
        of_z = gradients[0].contiguous()
        of_count = gradients[1] / max(1, len(z))
        of_threshold = torch.zeros_like(threshold)
        by_row = threshold.ndim > 1
        if by_row:
            sums = in_cache(of_threshold, like=z)
        else:
            sums = (of_threshold,) * len(in_cache(z))
        blocks = zip(
            in_cache(z),
            in_cache(of_z),
            _limits(threshold, z),
            sums,
            strict=True,
        )
        for z_block, of_block, limit, sum_block in blocks:
            # Both pseudo-derivatives have the kernel K and 1 / e in common. With a
            # threshold of 0.5 and e = 0.1 they count where z is in (0.45, 0.55), and
            # are there -(0.5 f' + count') / 0.1.
            near = (z_block - limit).abs_() < ctx.bandwidth / 2
            pulled = (limit * of_block).add_(of_count).mul_(near)
            sum_block.sub_(pulled if by_row else pulled.sum(dim=0))
            # in place: the latents' gradient becomes that of z
            of_block.mul_(z_block > limit)
        return of_z, of_threshold / ctx.bandwidth, None


def _limits(threshold: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Return a threshold for each block of z."""
    if threshold.ndim > 1:
        return in_cache(threshold, like=z)
    return (threshold,) * len(in_cache(z))


class JumpReluSae(FlatSae):
    """An SAE with a learnt threshold for each latent.

    Attributes:
        W_enc: [d, m].
        b_enc: [m].
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
        log_threshold: [m], or [n_sites, m] with `per_layer_threshold`.
    """

    # Margins are logarithms, so that a rise of 1 is a threshold e times as high.
    margin_std: ClassVar[float] = 1.0
    latent_axis: ClassVar[dict[str, int]] = {
        "W_dec": 0,
        "W_enc": 1,
        "b_enc": -1,
        "log_threshold": -1,
    }

    def __init__(self, spec: JumpRelu, shape: Shape) -> None:
        super().__init__(spec, shape)
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape))
        self.b_enc = self.zeros()
        self.b_dec = self.decoder_bias()
        sizes: tuple[int, ...] = (self.n_latents,)
        if spec.per_layer_threshold:
            sizes = (shape.n_sites, self.n_latents)
        first = torch.full(sizes, spec.threshold or LEAST_THRESHOLD)
        self.log_threshold = nn.Parameter(first.log())

    @property
    def threshold(self) -> Tensor:
        """The pre-activation at which a latent begins to fire: [m] or [n_sites, m]."""
        return self.log_threshold.exp()

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return the logarithm of pre-activations over their thresholds: [B, m].

        It is above 0 where a latent fires, and -inf where a pre-activation is not above
        0, which no threshold lets through.

        Args:
            x: [B, d].
            layer: The layer of the rows.
        """
        threshold = of_layer(self.threshold, layer)
        ratio = self.pre_activations(x, layer).relu()
        ratio = ratio / threshold
        return ratio.log()

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Return latents [B, m] of pre-activations [B, m]."""
        return torch.where(pre > of_layer(self.threshold, layer), pre, 0.0)

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
        pre = self.dense_pre_activations(rows, parts)
        threshold = of_layer(self.threshold, rows.layer)
        latents, active, fired = Jump.apply(pre, threshold, self.spec.bandwidth)  # type: ignore[no-untyped-call]
        reconstruction = self.dense_reconstruction(latents, rows, parts)
        l0 = parts.summed(active)
        mse = squared_error(rows.wanted, reconstruction)
        loss = mse + penalty * l0
        return Step(loss, reconstruction, fired, l0.detach(), {"mse": mse})

    @torch.no_grad()
    def raise_thresholds(self, by: Tensor) -> None:
        """Make all latents rarer, or more frequent where `by` is below 0.

        by: a scalar. At 0.2 a threshold of 1 becomes one of 1.22.
        """
        self.log_threshold.add_(by)

    @torch.no_grad()
    def forget_biases(
        self, latents: Tensor, mean_of_living: Callable[[Tensor], Tensor]
    ) -> None:
        """Set biases of latents [n] to 0, and thresholds to the mean of the living."""
        mean_threshold = mean_of_living(self.threshold)
        super().forget_biases(latents, mean_of_living)
        self.log_threshold.index_fill_(-1, latents, mean_threshold.log())

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set the decoder's bias, directions, thresholds and the encoder's length."""
        _, fit = self.begin_at(rows, centre, from_data)
        threshold = limits(self.pre_on, fit, first_l0(self.spec)).threshold
        scale = self.fitted(above(threshold), fit)
        self.lengthen_encoder(scale)
        first = (scale * threshold).clamp_min(LEAST_THRESHOLD)
        # biases take what the thresholds are not given
        if self.spec.threshold is not None:
            self.b_enc.add_(self.spec.threshold - first)
            first = torch.full_like(first, self.spec.threshold)
        self.log_threshold.copy_(first.log())


register(
    Kind(
        JumpRelu,
        JumpReluSae,
        learning_rate=7.2e-3,
        starting_penalty=0.05,
        step_memory=lambda _: StepMemory(4.7),
        saelens="jumprelu",
        imported=True,
    )
)
