"""An encoder with a hidden layer (methods, section 5): f = ReLU(ReLU((x - b_dec)
W_hidden + b_hidden) W_enc + b_enc).

x' = f W_dec + b_dec, loss = |x - x'|^2 + l1 * sum f, decoder rows at norm 1, as in
`relu_l1`. Where the hidden layer is 2 d wide or wider it begins as (x, -x), from which
the usual linear encoder can be read: a start no worse than linear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import MlpEncoder
from trainer.saes.encoder_init import begin_at, first_l0, fitted, limits
from trainer.saes.ops import (
    Centre,
    Layer,
    Penalty,
    ScaledRows,
    Shape,
    Step,
    encoder_input,
    mean,
    normalise_rows,
    of_layer,
    remove_parallel,
    squared_error,
    unit_rows,
)


class MlpEncoderSae(nn.Module):
    """W_hidden [d, h], b_hidden [h], W_enc [h, m], b_enc [m], W_dec [m, d], b_dec [d]
    or [n_sites, d].
    """

    unit_decoder = True

    def __init__(self, spec: MlpEncoder, shape: Shape) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = (
            spec,
            shape,
            shape.d,
            spec.size(shape.d),
        )
        hidden = max(1, round(spec.hidden * self.d))
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, self.d)))
        self.W_hidden = nn.Parameter(
            unit_rows(torch.randn(hidden, self.d)).T.contiguous()
        )
        self.b_hidden = nn.Parameter(torch.zeros(hidden))
        self.W_enc = nn.Parameter(
            unit_rows(torch.randn(self.n_latents, hidden)).T.contiguous()
        )
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(shape.bias(spec.per_layer_bias)))
        self._linear_start()

    @property
    def firing_bias(self) -> Tensor:
        """[m]: raised, a latent fires more often."""
        return self.b_enc

    @property
    def encoder(self) -> Tensor:
        """Of the hidden layer, [d, h]."""
        return self.W_hidden

    @property
    def encoder_bias(self) -> Tensor:
        """Of the hidden layer, [h]."""
        return self.b_hidden

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents [B, m] of the hidden layer's pre-activations [B, h]."""
        return (pre.relu() @ self.W_enc + self.b_enc).relu()

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """By how much pre-activations are above where latents begin to fire: [B, m]."""
        hidden = (
            encoder_input(x, self.b_dec, layer, self.shape) @ self.W_hidden
            + self.b_hidden
        )
        return hidden.relu() @ self.W_enc + self.b_enc

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return self.margins(x, layer).relu()

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Reconstruction [B, d] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows; `penalty` is its weight."""
        latents = self.encode(rows.x, rows.layer)
        reconstruction = self.decode(latents, rows.layer)
        mse, l1 = squared_error(rows.wanted, reconstruction), latents.sum(dim=-1).mean()
        with torch.no_grad():
            fired = (latents > 0).sum(dim=0)
        loss = mse + penalty * l1
        return Step(
            loss,
            reconstruction,
            fired,
            fired.sum() / len(rows.x),
            {"mse": mse, "l1": l1},
        )

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
        _, fit = begin_at(rows, self.W_dec, None, self.b_dec, centre, from_data)
        self._linear_start()

        def pre(part: ScaledRows) -> Tensor:
            return self.margins(part.x, part.layer)

        self.b_enc.sub_(limits(pre, fit, first_l0(self.spec)).threshold)
        scale = fitted(pre, torch.relu, self.W_dec, fit, self.b_dec)
        self.W_enc.mul_(scale)
        self.b_enc.mul_(scale)

    @torch.no_grad()
    def _linear_start(self) -> None:
        d = self.d
        if len(self.b_hidden) < 2 * d:
            return
        both = torch.cat([torch.eye(d), -torch.eye(d)], dim=1).to(self.W_hidden)
        self.W_hidden[:, : 2 * d] = both
        self.W_enc[: 2 * d] = both.T @ self.W_dec.T
        self.W_enc[2 * d :] = 0
