"""A transcoder: latents of one site that reconstruct another, y' = f(x) W_dec + b_dec
(+ x W_skip).

`inner` is any architecture built for another output than its input; it sees y - x
W_skip as its target, so that its loss is |y - y'|^2 as it should be, with its own
penalty. The skip starts at 0 (Paulo et al. 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import Transcoder
from trainer.errors import SaeError
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.gated import GatedSae
from trainer.saes.jumprelu import JumpReluSae
from trainer.saes.matryoshka import MatryoshkaSae
from trainer.saes.ops import Centre, Layer, Penalty, ScaledRows, Step, mean
from trainer.saes.relu_l1 import ReluL1Sae
from trainer.saes.topk import TopKSae

Inner = ReluL1Sae | TopKSae | BatchTopKSae | MatryoshkaSae | GatedSae | JumpReluSae


class TranscoderSae(nn.Module):
    """`inner`, and with `skip` W_skip [d, d_out]."""

    def __init__(self, spec: Transcoder, inner: Inner) -> None:
        super().__init__()
        self.spec, self.inner, self.shape = spec, inner, inner.shape
        self.d, self.n_latents = inner.d, inner.n_latents
        self.W_skip = (
            nn.Parameter(torch.zeros(self.d, self.shape.out)) if spec.skip else None
        )

    @property
    def unit_decoder(self) -> bool:
        """Whether decoder rows are kept at norm 1."""
        return self.inner.unit_decoder

    @property
    def encoder(self) -> Tensor:
        """[d, m]."""
        return self.inner.encoder

    @property
    def encoder_bias(self) -> Tensor:
        """[m]."""
        return self.inner.encoder_bias

    @property
    def W_dec(self) -> Tensor:  # noqa: N802 (its name where it is a parameter)
        """[m, d_out]."""
        return self.inner.W_dec

    @property
    def b_dec(self) -> Tensor:
        """[d_out]."""
        return self.inner.b_dec

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Latents of pre-activations [B, m]."""
        return self.inner.activate(pre, layer)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of input rows [B, d]."""
        return self.inner.encode(x, layer)

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Output [B, d_out] of latents [B, m], without the skip, which needs the input:
        see `predict`.
        """
        return self.inner.decode(latents, layer)

    def predict(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Output rows [B, d_out] of input rows [B, d]."""
        out = self.decode(self.encode(x, layer), layer)
        return out if self.W_skip is None else out + x @ self.W_skip

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:
        """Loss on rows with a target. Raises SaeError where they have none."""
        skipped = self.skipped(rows)
        step = self.inner.training_step(without(rows, skipped), penalty, dead)
        return (
            step
            if skipped is None
            else step._replace(reconstruction=step.reconstruction + skipped)
        )

    def inner_rows(self, rows: ScaledRows) -> ScaledRows:
        """ScaledRows as `inner` sees them. Raises SaeError where they have no target."""
        return without(rows, self.skipped(rows))

    def skipped(self, rows: ScaledRows) -> Tensor | None:
        """What the skip makes of the inputs [B, d_out]; None without one."""
        return None if self.W_skip is None else rows.x @ self.W_skip

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        self.inner.before_update()

    def after_update(self) -> None:
        """Behind the optimiser's step."""
        self.inner.after_update()

    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """From pairs of rows: decoder from outputs, encoder from inputs."""
        self.inner.initialise(rows, centre, from_data)


def without(rows: ScaledRows, skipped: Tensor | None) -> ScaledRows:
    """ScaledRows whose targets lack what the skip gives. Raises SaeError where they
    have no target.
    """
    if rows.target is None:
        raise SaeError(
            "a transcoder needs rows of two sites of the same tokens:"
            " ScaledRows(x=inputs, target=outputs)"
        )
    return rows if skipped is None else rows._replace(target=rows.target - skipped)
