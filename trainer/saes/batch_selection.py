"""Selection over a whole batch, and the threshold that replaces it outside training.

Outside training a row must not depend on its batch: f = z where z > threshold. The
threshold is the running mean over training of the smallest value that a batch's
selection kept (of each layer's rows, where layers have their own thresholds). If
batches kept values down to 0.8, 1.0 and 0.9, it comes to lie at about 0.9.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import level
from trainer.saes.flat_sae import above
from trainer.saes.scaled_rows import Layer, ScaledRows, Selection, of_layer
from trainer.saes.shape import Shape
from trainer.saes.sparse_codes import Encoder, running_mean, smallest
from trainer.saes.sparse_sae import SparseSae
from trainer.saes.step import Step


class BatchSelectingSae(SparseSae):
    """The base of BatchTopK and Matryoshka.

    Attributes:
        threshold: float32 [1], or [n_sites] with `per_layer_threshold`.
        updates: float32, like `threshold`: how many batches have entered each.
        per_layer: Whether each layer of a mixture has a threshold of its own.
    """

    selects_over_batch: ClassVar[bool] = True
    threshold: Tensor
    updates: Tensor

    def __init__(self, spec: Any, shape: Shape) -> None:
        super().__init__(spec, shape)
        self.per_layer = bool(getattr(spec, "per_layer_threshold", False))
        n_thresholds = shape.n_sites if self.per_layer else 1
        self.register_buffer("threshold", torch.zeros(n_thresholds))
        # apart for each threshold: a batch may have no row of some layer
        self.register_buffer("updates", torch.zeros(n_thresholds))

    def thresholds_by_layer(self) -> int:
        """Return how many thresholds there are."""
        return len(self.threshold) if self.per_layer else 1

    def threshold_of(self, layer: Layer = None) -> Tensor:
        """Return [1], or the threshold of each row's layer [B, 1]."""
        if not self.per_layer:
            return self.threshold
        return of_layer(self.threshold[:, None], layer)

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return by how much pre-activations are above the threshold: [B, m].

        Args:
            x: [B, d].
            layer: The layer of the rows.
        """
        return self.pre_activations(x, layer) - self.threshold_of(layer)

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        """Return latents of pre-activations [B, m] by the threshold."""
        return torch.where(pre > self.threshold_of(layer), pre, 0.0)

    def select(
        self,
        rows: ScaledRows,
        parts: Parts = ONE_PART,
        encoder: Encoder | None = None,
    ) -> Selection:
        """Return the selection of a batch.

        Args:
            rows: The rows of it that are here.
            parts: The processes that have the others, or other latents.
            encoder: The encoder of the rows, if it is there already.
        """
        if encoder is None:
            encoder = self.encoder_on(rows, self.b_dec)
        # k is a mean: of 4 rows with k 2 the 8 largest, perhaps 5, 1, 0 and 2 of a row
        n = self.spec.k * len(rows.x)
        chosen = parts.batch_top_k(encoder, n)
        layer = rows.layer if self.per_layer else None
        kept = smallest(chosen, layer, len(self.threshold))
        # every process moves its copy of the threshold by the same value
        return Selection(chosen, parts.least(kept))

    def selected(self, rows: ScaledRows, parts: Parts = ONE_PART) -> ScaledRows:
        """Return rows with what the selection over the whole batch keeps of them."""
        return rows._replace(selection=self.select(rows, parts))

    @torch.no_grad()
    def raise_thresholds(self, by: Tensor) -> None:
        """Make all latents rarer, or more frequent where `by` is below 0.

        by: a scalar, or [n_sites] where layers have their own thresholds.
        """
        # below 0 latents would fire with negative activations
        self.threshold.add_(by).clamp_min_(0)

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        """Normalise the decoder, and move the threshold to the batch's smallest value.

        A threshold stays where the batch had no row of its layer.
        """
        super().after_update(step)
        if step.smallest_kept is not None:
            running_mean(
                self.threshold,
                self.updates,
                step.smallest_kept,
                self.spec.threshold_decay,
            )

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set the decoder's bias, directions and the encoder's length from rows."""
        _, fit = self.begin_at(rows, centre, from_data)
        # the length is fitted to what the selection will keep, not to all latents
        least = level(self.pre_on, fit, self.spec.k)
        scale = self.fitted(above(least), fit)
        self.lengthen_encoder(scale)
