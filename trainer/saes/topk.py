"""TopK (Gao et al. 2024): the k largest latents of each row.

f = the k largest of ReLU((x - b_dec) W_enc + b_enc), x' = f W_dec + b_dec. AuxK as
`sparse_sae` has it. Decoder rows are kept at norm 1.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from schemas.sae import TopK
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.registry import Kind, register
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.sparse_codes import top_k
from trainer.saes.sparse_sae import SparseSae
from trainer.saes.step import Penalty, Step, squared_error


class TopKSae(SparseSae):
    """An SAE that keeps the k largest latents of each row.

    Attributes:
        W_enc: [d, m].
        b_enc: [m].
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
    """

    has_threshold: ClassVar[bool] = False

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return latents [B, m], dense, of pre-activations [B, m]."""
        return top_k(pre, self.spec.k)

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,  # noqa: ARG002 (k is the sparsity)
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows; `dead` are the latents AuxK may use.

        Arguments are those of `FlatSae.training_step`: `dead` is bool [m] or int64 [n].
        """
        b_dec = parts.shared(self.b_dec)
        encoder = self.encoder_on(rows, b_dec)
        values, pattern = parts.top_k(encoder, self.spec.k)
        codes = (values, pattern)
        reconstruction = self.sparse_reconstruction(codes, rows, b_dec, parts)
        mse = squared_error(rows.wanted, reconstruction)
        step = self.step_of({"mse": mse}, mse, reconstruction, codes, parts)
        return self.with_aux_k(step, rows, encoder, dead, parts)

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set the decoder's bias, directions and the encoder's length from rows."""
        _, fit = self.begin_at(rows, centre, from_data)
        codes = partial(top_k, k=self.spec.k)
        scale = self.fitted(codes, fit)
        self.lengthen_encoder(scale)


register(Kind(TopK, TopKSae, learning_rate=7e-3, saelens="topk", imported=True))
