"""BatchTopK (Bussmann et al. 2024): of a batch of B rows, the k * B largest latents.

f = the k * B largest of ReLU((x - b_dec) W_enc + b_enc) over the batch, and 0
elsewhere; x' = f W_dec + b_dec. So a row that needs more latents takes them from one
that needs fewer. Outside training a threshold takes the place of the selection
(`batch_selection`); with `per_layer_threshold` each layer of a mixture has its own.
AuxK as `sparse_sae` has it; decoder rows are kept at norm 1.
"""

from __future__ import annotations

from torch import Tensor

from schemas.sae import BatchTopK
from trainer.saes.batch_selection import BatchSelectingSae
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.registry import Kind, register
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.step import Penalty, Step, squared_error


class BatchTopKSae(BatchSelectingSae):
    """An SAE that keeps the k * B largest latents of a batch of B rows.

    Attributes:
        W_enc: [d, m].
        b_enc: [m].
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
        threshold: [1], or [n_sites] with `per_layer_threshold`.
    """

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
        # of a micro-batch, what the selection over the whole batch keeps of it
        selection = rows.selection or self.select(rows, parts, encoder)
        # the selection has no gradients; its values get them here
        values = encoder.at(selection.chosen)
        pattern = selection.chosen.pattern
        codes = (values, pattern)
        reconstruction = self.sparse_reconstruction(codes, rows, b_dec, parts)
        mse = squared_error(rows.wanted, reconstruction)
        step = self.step_of({"mse": mse}, mse, reconstruction, codes, parts)
        step = step._replace(smallest_kept=selection.smallest)
        return self.with_aux_k(step, rows, encoder, dead, parts)


register(Kind(BatchTopK, BatchTopKSae, learning_rate=7e-3, saelens="jumprelu"))
