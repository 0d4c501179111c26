"""The base of the TopK kinds: sparse codes, and AuxK for dead latents.

AuxK (Gao et al. 2024): the `aux_k` strongest latents among the dead try to explain the
error e = x - x'; their own error |e - e'|^2, times `aux_coefficient`, is added to the
loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer.errors import SaeError
from trainer.kernels.nonzeros import Pattern
from trainer.kernels.sparse_products import decoded
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.flat_sae import FlatSae
from trainer.saes.scaled_rows import ScaledRows, of_layer
from trainer.saes.shape import Shape, first_encoder
from trainer.saes.sparse_codes import Encoder, fired, listed
from trainer.saes.step import Step, squared_error


class SparseSae(FlatSae):
    """An SAE with sparse codes.

    Attributes:
        W_enc: [d, m], the transpose of a contiguous tensor.
        b_enc: [m].
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
    """

    sparse: ClassVar[bool] = True

    def __init__(self, spec: Any, shape: Shape) -> None:
        super().__init__(spec, shape)
        encoder = first_encoder(self.W_dec, shape, by_latent=True)
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = self.zeros()
        self.b_dec = self.decoder_bias()

    @classmethod
    def check(cls, spec: Any, shape: Shape) -> None:
        n_latents = spec.size(shape.d)
        if spec.k > n_latents:
            raise SaeError(
                f"k is {spec.k}, but the dictionary has {n_latents} latents"
                f" (d {shape.d}); lower k or raise expansion"
            )

    def encoder_on(self, rows: ScaledRows, b_dec: Tensor) -> Encoder:
        """Return the encoder on a batch.

        Args:
            rows: The batch.
            b_dec: [d_out], or [n_sites, d_out], as `Parts.shared` passes it on.
        """
        assert self.W_enc is not None
        return Encoder(rows, self.W_enc, self.b_enc, b_dec, self.shape)

    def sparse_reconstruction(
        self,
        codes: tuple[Tensor, Pattern],
        rows: ScaledRows,
        b_dec: Tensor,
        parts: Parts,
    ) -> Tensor:
        """Return the reconstruction [B, d_out] of a training step.

        Args:
            codes: Values [n] of the latents here and where they are.
            rows: The rows that they are of.
            b_dec: [d_out], or [n_sites, d_out], as `Parts.shared` passes it on.
            parts: Who has parts of the dictionary.
        """
        values, pattern = codes
        bias = parts.once(of_layer(b_dec, rows.layer))
        return parts.summed(decoded(values, self.W_dec, pattern, bias))

    def step_of(
        self,
        terms: dict[str, Tensor],
        loss: Tensor,
        reconstruction: Tensor,
        codes: tuple[Tensor, Pattern],
        parts: Parts,
    ) -> Step:
        """Return the step of a batch, without AuxK.

        Args:
            terms: The terms of the loss, by name.
            loss: Scalar.
            reconstruction: [B, d_out].
            codes: Values [n] of the latents here and where they are.
            parts: Who has parts of the dictionary.
        """
        counts = fired(*codes)
        l0 = parts.count(counts.sum()) / len(reconstruction)
        return Step(loss, reconstruction, counts, l0, terms)

    def with_aux_k(
        self,
        step: Step,
        rows: ScaledRows,
        encoder: Encoder,
        dead: Tensor,
        parts: Parts,
    ) -> Step:
        """Return a step with AuxK in its loss, where the spec wants it.

        Args:
            step: The step without it.
            rows: The batch.
            encoder: The encoder of the batch.
            dead: bool [m], or as `listed` has it.
            parts: Who has parts of the dictionary.
        """
        if not self.spec.aux_coefficient:
            return step
        error = rows.wanted - step.reconstruction
        aux = self.aux_k(encoder, error, dead, parts)
        if aux is None:
            return step
        loss = step.loss + self.spec.aux_coefficient * aux
        return step._replace(loss=loss, parts={**step.parts, "aux": aux})

    def aux_k(
        self,
        encoder: Encoder,
        error: Tensor,
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Tensor | None:
        """Return |e - e'|^2 with e' from the strongest of the dead latents.

        Args:
            encoder: The encoder of the batch.
            error: [B, d], taken as a constant.
            dead: As `listed` has it.
            parts: Who has parts of the dictionary.

        Returns:
            A scalar; None if no latent is dead.
        """
        # Latents 3 and 8 of the list 3, -6, 8 may be chosen. Where k is 3, the third is
        # 5 with a pre-activation of -inf, which ReLU makes 0.
        among = listed(dead)
        n_dead = parts.n_latents(len(among))
        if not n_dead:
            return None
        # near the paper's choice, a power of 2 close to half the width of a row
        wanted = self.spec.aux_k or max(1, error.shape[-1] // 2)
        k = min(wanted, n_dead)
        values, pattern = parts.top_k(encoder, k, among)
        explained = parts.summed(decoded(values, self.W_dec, pattern))
        # the error is a constant, so that only dead latents learn from this term
        left = squared_error(error.detach(), explained)
        # all of them may have fired since they were listed
        return torch.where(parts.any(among >= 0), left, 0.0)
