"""An SAE around another one that has the latents: a transcoder or a crosscoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.flat_sae import FlatSae
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.step import Penalty, Step


class WrapperSae(nn.Module, ABC):
    """The latents of `inner`, on other rows.

    Attributes:
        spec: The options, with those of `inner`.
        inner: The SAE that has the latents.
        shape: The shape of `inner`.
        d: Width of a site's vector.
        n_latents: Latents that are here; m in all shapes.
    """

    sparse: ClassVar[bool] = False
    selects_over_batch: ClassVar[bool] = False
    crosscoder_options: ClassVar[dict[str, object]] = {}

    def __init__(self, spec: Any, inner: FlatSae) -> None:
        super().__init__()
        self.spec = spec
        self.inner = inner
        self.shape = inner.shape
        self.d = inner.d
        self.n_latents = inner.n_latents

    @classmethod
    @abstractmethod
    def make(cls, spec: Any, shape: Shape, seed: int) -> Self:
        """Return a fresh one, as `FlatSae.make`."""

    @property
    def latents_part(self) -> FlatSae:
        """The part of an SAE that has the latents."""
        return self.inner

    @property
    def unit_decoder(self) -> bool:
        """True if decoder rows are kept at norm 1."""
        return self.inner.unit_decoder

    @property
    def encoder(self) -> Tensor:
        """The encoder of `inner`, [d, m]."""
        return self.inner.encoder

    @property
    def encoder_bias(self) -> Tensor:
        """The encoder bias of `inner`, [m]."""
        return self.inner.encoder_bias

    @property
    def W_dec(self) -> Tensor:  # noqa: N802 (its name where it is a parameter)
        """The decoder directions of `inner`, [m, d_out]."""
        return self.inner.W_dec

    @property
    def b_dec(self) -> Tensor:
        """The decoder bias of `inner`, [d_out], or [n_sites, d_out]."""
        return self.inner.b_dec

    @abstractmethod
    def inner_rows(self, rows: ScaledRows) -> ScaledRows:
        """Return rows as `inner` sees them."""

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Return latents of pre-activations [B, m]."""
        return self.inner.activate(pre, layer)

    @abstractmethod
    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return latents [B, m] of rows [B, d], or of a crosscoder [B, n_sites, d]."""

    @abstractmethod
    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Return the reconstruction [B, d_out] or [B, n_sites, d] of latents [B, m]."""

    def predict(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return the reconstruction of rows; shapes are those of `encode`, `decode`."""
        return self.decode(self.encode(x, layer), layer)

    @abstractmethod
    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows; see `FlatSae.training_step`. dead: bool [m]."""

    def selected(self, rows: ScaledRows, parts: Parts = ONE_PART) -> ScaledRows:
        """Return rows with what a selection over the whole batch keeps of them."""
        chosen = self.inner.selected(self.inner_rows(rows), parts)
        return rows._replace(selection=chosen.selection)

    def before_update(self) -> None:
        """Change gradients after backward, before the optimiser's step."""
        self.inner.before_update()

    def after_update(self, step: Step) -> None:
        """Do what follows the optimiser's step on a batch, of which `step` is."""
        self.inner.after_update(step)

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set weights in place from rows, as `FlatSae.initialise`."""
        self.inner.initialise(rows, centre, from_data)
