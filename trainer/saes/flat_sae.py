"""The base of the kinds of SAE with one encoder and one decoder.

A kind adds its activation function, its loss (`training_step`) and where it begins
(`initialise`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trainer.errors import SaeError
from trainer.kernels.dense_encoder import affine
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import begin_at, fitted
from trainer.saes.scaled_rows import Layer, ScaledRows, of_layer
from trainer.saes.shape import Shape, encoder_input
from trainer.saes.step import Penalty, Step
from trainer.saes.step_noise import Draws
from trainer.saes.unit_rows import normalise_rows, remove_parallel, unit_rows

# About: 1 / sqrt(d) at first, where rows have a mean square of 1 and the encoder's
# columns are at norm 1. That is 0.09 for d 128.
_PRE_ACTIVATION_STD = 0.1


class FlatSae(nn.Module, ABC):
    """W_dec [m, d_out] and the sizes; a kind's constructor adds the rest.

    Attributes:
        spec: The options of the kind, of the whole dictionary.
        shape: The sizes that the data gives.
        d: Width of a row.
        n_latents: Latents that are here; m in all shapes.
        draws: What is random in training; None where nothing is.
    """

    sparse: ClassVar[bool] = False
    """True where k sets the number of active latents, and sparse kernels compute it."""
    selects_over_batch: ClassVar[bool] = False
    """True where a training step selects over all rows of a batch."""
    has_threshold: ClassVar[bool] = True
    """True where a latent fires above a level of its pre-activation."""
    margin_std: ClassVar[float] = _PRE_ACTIVATION_STD
    """About the standard deviation of margins where rows have a mean square of 1."""
    latent_axis: ClassVar[dict[str, int]] = {"W_dec": 0, "W_enc": 1, "b_enc": -1}
    """Which axis of a parameter counts latents; the others have none of it."""
    crosscoder_options: ClassVar[dict[str, object]] = {}
    """The fields that a crosscoder sets in the spec of this kind."""

    W_enc: Tensor | None
    b_enc: Tensor
    b_dec: Tensor

    def __init__(self, spec: Any, shape: Shape) -> None:
        super().__init__()
        self.spec = spec
        self.shape = shape
        self.d = shape.d
        self.n_latents: int = shape.latents_here or spec.size(shape.d)
        directions = torch.randn(self.n_latents, shape.out)
        self.W_dec = nn.Parameter(unit_rows(directions))
        self.draws: Draws | None = None

    @classmethod
    def make(cls, spec: Any, shape: Shape, seed: int) -> Self:
        """Return a fresh one.

        Raises:
            SaeError: The spec cannot work at that width.
        """
        if spec.size(shape.d) < 1:
            raise SaeError(
                f"expansion {spec.expansion} of d {shape.d} gives"
                f" {spec.size(shape.d)} latents; wanted at least 1"
            )
        cls.check(spec, shape)
        return cls.of_seed(spec, shape, seed)

    @classmethod
    def check(cls, spec: Any, shape: Shape) -> None:
        """Raise SaeError where the kind's own options cannot work at that width."""

    @classmethod
    def of_seed(cls, spec: Any, shape: Shape, seed: int) -> Self:  # noqa: ARG003 (for kinds that draw)
        """Return one whose weights torch draws; `seed` is for later draws."""
        return cls(spec, shape)

    def zeros(self) -> nn.Parameter:
        """Return a parameter [m] of zeros."""
        return nn.Parameter(torch.zeros(self.n_latents))

    def decoder_bias(self) -> nn.Parameter:
        """Return b_dec: zeros [d_out], or [n_sites, d_out] with `per_layer_bias`."""
        shape = self.shape.bias(self.spec.per_layer_bias)
        return nn.Parameter(torch.zeros(shape))

    @property
    def unit_decoder(self) -> bool:
        """True if decoder rows are kept at norm 1."""
        return True

    @property
    def latents_part(self) -> FlatSae:
        """The part of an SAE that has the latents: all of it."""
        return self

    @property
    def firing_bias(self) -> Tensor:
        """The parameter [m] that, raised, makes a latent fire more often."""
        return self.b_enc

    @property
    def encoder(self) -> Tensor:
        """The matrix that rows are multiplied with, [d, m]."""
        assert self.W_enc is not None
        return self.W_enc

    @property
    def encoder_bias(self) -> Tensor:
        """The bias that is added to that product, [m]."""
        return self.b_enc

    def pre_activations(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return what the encoder makes of rows [B, d] before `activate`: [B, m]."""
        inputs = encoder_input(x, self.b_dec, layer, self.shape)
        return inputs @ self.encoder + self.encoder_bias

    @abstractmethod
    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Return latents [B, m] of pre-activations [B, m]."""

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return by how much pre-activations are above where latents begin to fire.

        Args:
            x: [B, d].
            layer: The layer of the rows.

        Returns:
            [B, m].
        """
        return self.pre_activations(x, layer)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return latents [B, m] of rows [B, d], each row for itself."""
        return self.activate(self.pre_activations(x, layer), layer)

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Return the reconstruction [B, d_out] of latents [B, m]."""
        return latents @ self.W_dec + of_layer(self.b_dec, layer)

    def predict(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return what rows [B, d] are reconstructed as, [B, d_out]."""
        return self.decode(self.encode(x, layer), layer)

    def inner_rows(self, rows: ScaledRows) -> ScaledRows:
        """Return rows as the latents see them: as they are."""
        return rows

    @abstractmethod
    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows, and what else training asks of them.

        Args:
            rows: The rows here.
            penalty: The weight of the sparsity penalty, for kinds that have one.
            dead: bool [m], or as `sparse_codes.listed` has it: what AuxK may use, for
                kinds that have it.
            parts: The processes that have parts of the dictionary or the batch.
        """

    def selected(self, rows: ScaledRows, parts: Parts = ONE_PART) -> ScaledRows:  # noqa: ARG002 (for kinds that select)
        """Return rows with what a selection over the whole batch keeps of them.

        Training steps on pieces of them then need not select; kinds that do so row by
        row, if at all, return the rows as they are.
        """
        return rows

    def thresholds_by_layer(self) -> int:
        """Return how many thresholds there are that training moves all together."""
        return 1

    def shift_inputs(self) -> Tensor | None:
        """Return what the encoder subtracts from rows; None for a transcoder.

        [d], or [n_sites, d] with a bias for each layer.
        """
        return None if self.shape.d_out is not None else self.b_dec

    def dense_pre_activations(self, rows: ScaledRows, parts: Parts) -> Tensor:
        """Return pre-activations [B, m] with the gradients of a training step.

        Args:
            rows: The rows here.
            parts: The processes that have parts; all of them move the shift.
        """
        shift = self.shift_inputs()
        if shift is not None:
            shift = parts.shared(shift)
        return affine(rows.x, shift, rows.layer, self.encoder, self.encoder_bias)

    def dense_reconstruction(
        self, latents: Tensor, rows: ScaledRows, parts: Parts
    ) -> Tensor:
        """Return the reconstruction [B, d_out] of latents [B, m] in a training step.

        Args:
            latents: Those here.
            rows: The rows that they are of.
            parts: The processes that have parts of the dictionary.
        """
        # added after the sum over processes, so that it counts once
        bias = of_layer(self.b_dec, rows.layer)
        return parts.summed(latents @ self.W_dec) + bias

    def latent_inputs(self, rows: ScaledRows) -> Tensor:
        """Return what a latent's own weights are multiplied with: [B, d]."""
        return encoder_input(rows.x, self.b_dec, rows.layer, self.shape)

    @torch.no_grad()
    def lift_biases(self, latents: Tensor, by: float) -> None:
        """Make some latents fire more often: `latents` bool [m]."""
        self.firing_bias.add_(latents, alpha=by)

    @torch.no_grad()
    def raise_thresholds(self, by: Tensor) -> None:
        """Make all latents rarer, or more frequent where `by` is below 0.

        By so much `margins` fall. by: a scalar, or for thresholds that differ by layer
        [n_sites].
        """
        self.firing_bias.sub_(by)

    @torch.no_grad()
    def forget_biases(
        self, latents: Tensor, mean_of_living: Callable[[Tensor], Tensor]
    ) -> None:
        """Set what latents [n] have beside their vectors to where it begins.

        mean_of_living: The mean of a parameter [..., m] over the living latents of all
        processes, a scalar.
        """
        del mean_of_living  # for kinds whose thresholds do not begin at 0
        for name, parameter in self.named_parameters():
            if self.latent_axis.get(name) == -1:
                parameter.index_fill_(-1, latents, parameter.new_zeros(()))

    def before_update(self) -> None:
        """Change gradients after backward, before the optimiser's step."""
        if self.unit_decoder:
            remove_parallel(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(self, step: Step) -> None:  # noqa: ARG002 (for kinds with thresholds)
        """Do what follows the optimiser's step on a batch, of which `step` is."""
        if self.unit_decoder:
            normalise_rows(self.W_dec)

    @abstractmethod
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set weights in place from rows, so that training starts below an FVU of 1.

        Args:
            rows: The first rows of training.
            centre: Where the decoder's bias begins.
            from_data: Decoder directions are rows too; else they stay random.
        """

    def begin_at(
        self, rows: ScaledRows, centre: Centre, from_data: bool
    ) -> tuple[Tensor, ScaledRows]:
        """Set the decoder's bias and the directions of decoder and encoder.

        Returns:
            The inputs' centre [d], and rows to fit the encoder's length on.
        """
        middle, fit = begin_at(
            rows, self.W_dec, self.W_enc, self.b_dec, centre, from_data
        )
        # a transcoder's encoder subtracts nothing, so its bias does
        if rows.target is not None:
            self.firing_bias.copy_(-middle @ self.encoder)
        return middle, fit

    def fitted(self, codes: Callable[[Tensor], Tensor], fit: ScaledRows) -> float:
        """Return the factor by which latents fit rows best.

        codes: From what `pre_on` gives of rows to their latents [n, m].
        """
        return fitted(self.pre_on, codes, self.W_dec, fit, self.b_dec)

    def pre_on(self, rows: ScaledRows) -> Tensor:
        """Return the pre-activations [n, m] of rows."""
        return self.pre_activations(rows.x, rows.layer)

    def lengthen_encoder(self, scale: float) -> None:
        """Multiply the latents' own weights and biases, in place."""
        assert self.W_enc is not None
        self.W_enc.mul_(scale)
        self.b_enc.mul_(scale)


def above(threshold: Tensor | float) -> Callable[[Tensor], Tensor]:
    """Return a function of pre-activations [n, m], which keeps those above a level."""

    def kept(pre: Tensor) -> Tensor:
        return torch.where(pre > threshold, pre, 0.0)

    return kept
