"""A crosscoder (Lindsey et al. 2024): one set of latents for n sites of the same token.

f = act(sum_s (x_s - b_dec,s) W_enc,s + b_enc), x'_s = f W_dec,s + b_dec,s, loss = sum_s
|x_s - x'_s|^2 + penalty. That is `inner` on the sites side by side, a row of n * d,
which is how it is computed. With `relu_l1` the penalty is l1 * sum_i f_i sum_s
|W_dec,s,i| and the decoder free; with the TopK kinds a latent's whole decoder row is at
norm 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from schemas.sae import Crosscoder
from trainer.errors import SaeError
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.matryoshka import MatryoshkaSae
from trainer.saes.ops import Centre, Layer, Penalty, ScaledRows, Step, mean
from trainer.saes.relu_l1 import ReluL1Sae
from trainer.saes.topk import TopKSae

Inner = ReluL1Sae | TopKSae | BatchTopKSae | MatryoshkaSae


class CrosscoderSae(nn.Module):
    """`inner` at width n_sites * d."""

    def __init__(self, spec: Crosscoder, inner: Inner) -> None:
        super().__init__()
        self.spec, self.inner, self.shape = spec, inner, inner.shape
        self.n_sites, self.n_latents = inner.shape.parts, inner.n_latents
        self.d = inner.d // self.n_sites

    @property
    def unit_decoder(self) -> bool:
        """Whether decoder rows are kept at norm 1."""
        return self.inner.unit_decoder

    @property
    def encoder(self) -> Tensor:
        """[n_sites, d, m]."""
        return self.inner.encoder.reshape(self.n_sites, self.d, -1)

    @property
    def encoder_bias(self) -> Tensor:
        """[m]."""
        return self.inner.encoder_bias

    @property
    def W_dec(self) -> Tensor:  # noqa: N802 (its name where it is a parameter)
        """[m, n_sites, d]."""
        return self.inner.W_dec.view(-1, self.n_sites, self.d)

    @property
    def b_dec(self) -> Tensor:
        """[n_sites, d]."""
        return self.inner.b_dec.view(self.n_sites, self.d)

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Latents of pre-activations [B, m]."""
        return self.inner.activate(pre, layer)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (a row has all its layers)
        """Latents [B, m] of rows [B, n_sites, d]."""
        return self.inner.encode(self._side_by_side(x))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (a row has all its layers)
        """Reconstruction [B, n_sites, d] of latents [B, m]."""
        return self.inner.decode(latents).view(-1, self.n_sites, self.d)

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:
        """Loss on rows of all sites."""
        step = self.inner.training_step(self.inner_rows(rows), penalty, dead)
        return step._replace(
            reconstruction=step.reconstruction.view(-1, self.n_sites, self.d)
        )

    def inner_rows(self, rows: ScaledRows) -> ScaledRows:
        """ScaledRows as `inner` sees them."""
        return ScaledRows(
            self._side_by_side(rows.x),
            batch_position=rows.batch_position,
            chosen=rows.chosen,
        )

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        self.inner.before_update()

    def after_update(self) -> None:
        """Behind the optimiser's step."""
        self.inner.after_update()

    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """From rows of all sites."""
        self.inner.initialise(self.inner_rows(rows), centre, from_data)

    def _side_by_side(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1:] != (self.n_sites, self.d):
            raise SaeError(
                f"this crosscoder wants rows [B, {self.n_sites}, {self.d}], got"
                f" {list(x.shape)}"
            )
        return x.flatten(1)
