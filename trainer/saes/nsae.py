"""Normalized SAE (methods, section 2): c = tanh(ReLU(x W_enc + b_enc + noise)), x' = c
W_dec, with no decoder bias.

Loss of a row of layer i: beta_i * sum c + |x' - x|^2 with beta_i = alpha * n_i^2. n_i
is the mean norm of the layer's rows as the SAE sees them; with `norm: row` it is the
row's own norm. The decoder is not held at norm 1. The noise, N(0, noise^2) per entry,
is there in training only; it is a function of the seed, the updates so far, the row's
place in the batch and the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import Nsae
from trainer.errors import SaeError
from trainer.saes.encoder_init import begin_at, blocks, first_l0, fitted, limits
from trainer.saes.ops import (
    Centre,
    Layer,
    Penalty,
    ScaledRows,
    Shape,
    Step,
    mean,
    squared_error,
    unit_rows,
)
from trainer.saes.step_noise import Draws

STAGE = 32


class NormalizedSae(nn.Module):
    """W_enc [d, m], b_enc [m], W_dec [m, d]; b_dec [d] is 0 and stays it."""

    unit_decoder = False
    b_dec: Tensor

    def __init__(self, spec: Nsae, shape: Shape, seed: int) -> None:
        super().__init__()
        self.spec, self.shape, self.d, self.n_latents = (
            spec,
            shape,
            shape.d,
            spec.size(shape.d),
        )
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, self.d)))
        self.W_enc = nn.Parameter(
            self.W_dec.detach().T.clone(memory_format=torch.contiguous_format)
        )
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.register_buffer("b_dec", torch.zeros(self.d), persistent=False)
        self.draws = Draws(seed, STAGE)

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

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents of pre-activations [B, m]."""
        return pre.relu().tanh()

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """By how much pre-activations are above where latents begin to fire: [B, m]."""
        return x @ self.W_enc + self.b_enc

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Latents [B, m] of rows [B, d], without noise."""
        return self.activate(self.margins(x))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Reconstruction [B, d] of latents [B, m]."""
        return latents @ self.W_dec

    def training_step(self, rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows; `penalty` is its weight. No noise in eval mode."""
        latents = self.activate(self.noisy(rows.x @ self.W_enc + self.b_enc, rows))
        reconstruction = self.decode(latents)
        mse = squared_error(rows.x, reconstruction)
        l1 = (self.squared_norms(rows) * latents.sum(dim=-1)).mean()
        loss = mse + penalty * l1
        with torch.no_grad():
            fired = (latents > 0).sum(dim=0)
        return Step(
            loss,
            reconstruction,
            fired,
            fired.sum() / len(rows.x),
            {"mse": mse, "l1": l1},
        )

    def noisy(
        self, pre: Tensor, rows: ScaledRows, latents: tuple[int, int] | None = None
    ) -> Tensor:
        """Pre-activations with this update's noise, outside training as they are;
        `latents` as in `Draws.normal`.
        """
        if not self.training or not self.spec.noise:
            return pre
        return pre + self.spec.noise * self.draws.normal(
            pre.detach(), rows.batch_position, latents
        )

    def squared_norms(self, rows: ScaledRows) -> Tensor:
        """n_i^2 of each row, [B] or [1]. Raises SaeError where the layers' norms are
        wanted and not given.
        """
        if self.spec.norm == "row":
            return rows.x.square().sum(dim=-1)
        if rows.norm is None or (rows.layer is None and len(rows.norm) > 1):
            raise SaeError(
                "nsae weighs its penalty by the layers' mean norms: give"
                " ScaledRows(norm=..., layer=...)"
            )
        squares = rows.norm.square()
        return squares if rows.layer is None else squares.index_select(0, rows.layer)

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""

    def after_update(self) -> None:
        """Behind the optimiser's step."""
        self.draws.advance()

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Directions and thresholds from rows (`start`), pre-activations with a
        standard deviation of 1.

        There is no decoder bias, so decoder rows share what it would be: each also
        points to the rows' centre, by as much as gives the centre where the mean row's
        latents are active.
        """
        middle = torch.zeros_like(self.b_dec)
        _, fit = begin_at(rows, self.W_dec, self.W_enc, middle, centre, from_data)
        own = limits(lambda part: part.x @ self.W_enc, fit, first_l0(self.spec))
        self.W_enc.div_(own.std)
        self.b_enc.copy_(-own.threshold / own.std)

        def pre(part: ScaledRows) -> Tensor:
            return self.margins(part.x)

        active = torch.stack(
            [self.activate(pre(part)).sum(dim=0) for part in blocks(fit)]
        ).sum(dim=0) / len(fit.x)
        directions = (
            self.W_dec - active[:, None] * (active @ self.W_dec) / active.square().sum()
        )
        scale = fitted(pre, self.activate, directions, fit, middle)
        self.W_dec.copy_(
            scale * directions + active[:, None] * middle / active.square().sum()
        )
