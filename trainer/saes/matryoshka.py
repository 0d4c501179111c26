"""Matryoshka BatchTopK (Bussmann et al. 2025): each prefix of the dictionary suffices.

f as in `batch_topk`, over all latents. With prefixes m_1 < ... < m_P = m, x'_p = b_dec
+ sum of f_i W_dec,i over i < m_p, and loss = mean over p of |x - x'_p|^2 (+ AuxK on the
error of the whole). Early latents so stay general ones: with prefixes of 2 and 6
latents, the first two also have to reconstruct the row without the other four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from schemas.sae import Matryoshka
from trainer.errors import SaeError
from trainer.saes.batch_selection import BatchSelectingSae
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.registry import Kind, register
from trainer.saes.scaled_rows import ScaledRows, of_layer
from trainer.saes.shape import Shape
from trainer.saes.sparse_codes import prefix_decoded
from trainer.saes.step import Penalty, Step, squared_error


class MatryoshkaSae(BatchSelectingSae):
    """An SAE whose loss is the mean over nested dictionaries.

    Attributes:
        W_enc: [d, m].
        b_enc: [m].
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
        threshold: [1].
        prefixes: How many latents each prefix has, of the whole dictionary.
    """

    def __init__(self, spec: Matryoshka, shape: Shape) -> None:
        super().__init__(spec, shape)
        n_latents = spec.size(shape.d)
        sizes = [round(share * n_latents) for share in spec.prefixes]
        self.prefixes = [max(1, size) for size in sizes]

    @classmethod
    def check(cls, spec: Any, shape: Shape) -> None:
        super().check(spec, shape)
        n_latents = spec.size(shape.d)
        if round(spec.prefixes[0] * n_latents) < 1:
            raise SaeError(
                f"the first prefix, {spec.prefixes[0]:.3g} of {n_latents} latents, is"
                " empty; raise it"
            )

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,  # noqa: ARG002 (k is the sparsity)
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows; `dead` are the latents AuxK may use.

        Arguments are those of `FlatSae.training_step`: `dead` is bool [m] or int64 [n].
        The term `mse` is that of the whole dictionary.
        """
        b_dec = parts.shared(self.b_dec)
        encoder = self.encoder_on(rows, b_dec)
        selection = rows.selection or self.select(rows, parts, encoder)
        values = encoder.at(selection.chosen)
        pattern = selection.chosen.pattern
        bias = parts.once(of_layer(b_dec, rows.layer))
        ends = self.prefixes_here(parts.first_latent)
        nested = prefix_decoded(values, self.W_dec, pattern, ends, bias)
        # in one exchange, for its latency would come once for each prefix
        nested = parts.summed_together(nested)
        # the last prefix is the whole dictionary
        reconstruction = nested[-1]
        errors = [squared_error(rows.wanted, prefix) for prefix in nested]
        loss = torch.stack(errors).mean()
        terms = {"mse": errors[-1], "prefixes": loss}
        codes = (values, pattern)
        step = self.step_of(terms, loss, reconstruction, codes, parts)
        step = step._replace(smallest_kept=selection.smallest)
        return self.with_aux_k(step, rows, encoder, dead, parts)

    def prefixes_here(self, first_latent: int) -> list[int]:
        """Return how many of the latents here each prefix has.

        Of prefixes (2, 6) and latents 4 to 7 here, the first has none and the second
        two.
        """
        counts = [end - first_latent for end in self.prefixes]
        return [min(max(0, count), self.n_latents) for count in counts]


register(Kind(Matryoshka, MatryoshkaSae, learning_rate=6.5e-3, saelens="jumprelu"))
