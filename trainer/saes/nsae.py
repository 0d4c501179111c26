"""Normalized SAE (docs/methods.md, section 2): latents below 1, noise in training.

c = tanh(ReLU(x W_enc + b_enc + noise)), x' = c W_dec, with no decoder bias. Loss of a
row of layer i: beta_i * sum c + |x' - x|^2 with beta_i = alpha * n_i^2. n_i is the mean
norm of the layer's rows as the SAE sees them; with `norm: row` it is the row's own
norm. The decoder is not held at norm 1. The noise, N(0, noise^2) per entry, is there in
training only; it is a function of the seed, the updates so far, the row's position in
the batch and the latent.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from schemas.sae import Nsae
from trainer.errors import SaeError
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import begin_at, blocks, first_l0, fitted, limits
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import Kind, StepMemory, register
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.step import Penalty, Step, firings, squared_error
from trainer.saes.step_noise import Draws

STAGE = 32


class NormalizedSae(FlatSae):
    """An SAE whose latents are a tanh.

    Attributes:
        W_enc: [d, m].
        b_enc: [m].
        W_dec: [m, d].
        b_dec: [d]; it is 0 and stays it, and is no part of the weights.
    """

    # `initialise` brings pre-activations to a standard deviation of 1
    margin_std: ClassVar[float] = 1.0

    def __init__(self, spec: Nsae, shape: Shape, seed: int) -> None:
        super().__init__(spec, shape)
        transposed = self.W_dec.detach().T
        encoder = transposed.clone(memory_format=torch.contiguous_format)
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = self.zeros()
        self.register_buffer("b_dec", torch.zeros(self.d), persistent=False)
        self.draws = Draws(seed, STAGE)

    @classmethod
    def of_seed(cls, spec: Any, shape: Shape, seed: int) -> Self:
        return cls(spec, shape, seed)

    @property
    def unit_decoder(self) -> bool:
        """False: decoder rows are not kept at norm 1."""
        return False

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return latents [B, m] of pre-activations [B, m]."""
        return pre.relu().tanh()

    def pre_activations(self, x: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return pre-activations [B, m] of rows [B, d], without noise."""
        return x @ self.encoder + self.b_enc

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return the reconstruction [B, d] of latents [B, m]."""
        return latents @ self.W_dec

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,  # noqa: ARG002 (nothing for the dead)
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows; there is no noise in eval mode.

        Arguments are those of `FlatSae.training_step`; `dead`, bool [m], is not used.
        """
        pre = self.pre_activations(rows.x)
        # before the ReLU, so that noise can also switch latents on
        pre = self.noisy(pre, rows, parts.first_latent)
        latents = self.activate(pre)
        reconstruction = parts.summed(latents @ self.W_dec)
        # latents are below 1 however long a row is, while its error grows with the
        # square of its norm: so does the penalty
        sums = latents.sum(dim=-1)
        l1 = (self.squared_norms(rows) * sums).mean()
        terms = {
            "mse": squared_error(rows.x, reconstruction),
            "l1": parts.summed(l1),
        }
        loss = terms["mse"] + penalty * terms["l1"]
        fired = firings(latents)
        l0 = parts.count(fired.sum()) / len(rows.x)
        return Step(loss, reconstruction, fired, l0, terms)

    def noisy(self, pre: Tensor, rows: ScaledRows, first_latent: int = 0) -> Tensor:
        """Return pre-activations with this update's noise; as they are in eval mode.

        Args:
            pre: [B, m].
            rows: The rows that they are of.
            first_latent: The number of the first latent here, in the whole dictionary.
        """
        if not self.training or not self.spec.noise:
            return pre
        assert self.draws is not None
        n_latents = self.spec.size(self.d)
        noise = self.draws.normal(
            pre.detach(), rows.batch_position, (first_latent, n_latents)
        )
        noisy: Tensor = pre + self.spec.noise * noise
        return noisy

    def squared_norms(self, rows: ScaledRows) -> Tensor:
        """Return n_i^2 of each row, [B] or [1].

        Raises:
            SaeError: The layers' norms are wanted and not given.
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

    def after_update(self, step: Step) -> None:
        """Draw other noise next time."""
        super().after_update(step)
        assert self.draws is not None
        self.draws.advance()

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set directions and thresholds from rows.

        Pre-activations begin with a standard deviation of 1. There is no decoder bias,
        so decoder rows share what it would be: each also points to the rows' centre, by
        as much as gives the centre where the mean row's latents are active.
        """
        assert self.W_enc is not None
        middle = torch.zeros_like(self.b_dec)
        _, fit = begin_at(rows, self.W_dec, self.W_enc, middle, centre, from_data)
        l0 = first_l0(self.spec)
        first = limits(lambda part: part.x @ self.encoder, fit, l0)
        self.W_enc.div_(first.std)
        self.b_enc.copy_(-first.threshold / first.std)
        sums = []
        for part in blocks(fit):
            latents = self.activate(self.pre_on(part))
            sums.append(latents.sum(dim=0))
        active = torch.stack(sums).sum(dim=0) / len(fit.x)
        # What the mean row's latents would reconstruct is taken out of the directions,
        # then put back as the centre: with a = `active`, a (D - a^T (a D) / |a|^2) = 0,
        # and a (a^T c / |a|^2) = c.
        square = active.square().sum()
        column = active[:, None]
        directions = self.W_dec - column * (active @ self.W_dec) / square
        scale = fitted(self.pre_on, self.activate, directions, fit, middle)
        self.W_dec.copy_(scale * directions + column * middle / square)


register(
    Kind(
        Nsae,
        NormalizedSae,
        learning_rate=1.4e-2,
        starting_penalty=0.008,
        step_memory=lambda _: StepMemory(5.5),
        no_saelens_because="its latents are a tanh",
    )
)
