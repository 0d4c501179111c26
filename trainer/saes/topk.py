"""TopK (Gao et al. 2024): f = the k largest of ReLU((x - b_dec) W_enc + b_enc), x' = f W_dec + b_dec.

AuxK: the `aux_k` strongest latents among the dead try to explain the error e = x - x'; their own error |e - e'|^2,
times `aux_coefficient`, is added to the loss. Decoder rows are kept at norm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import TopK
from trainer.saes.ops import Step, fired_counts, remove_parallel, sparse_decode, squared_error, top_k, unit_rows


class TopKSae(nn.Module):
    """W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d]."""

    def __init__(self, spec: TopK, d: int) -> None:
        super().__init__()
        self.spec, self.d, self.n_latents = spec, d, spec.size(d)
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, d)))
        self.W_enc = nn.Parameter(self.W_dec.detach().T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d))

    @property
    def encoder(self) -> Tensor:
        """[d, m]."""
        return self.W_enc

    def pre_activations(self, x: Tensor) -> Tensor:
        """[B, m], before the selection."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Latents [B, m] of rows [B, d], dense."""
        pre = self.pre_activations(x)
        values, indices = top_k(pre, self.spec.k)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction [B, d] of latents [B, m]."""
        return latents @ self.W_dec + self.b_dec

    def training_step(self, x: Tensor, sparsity: float, dead: Tensor) -> Step:  # noqa: ARG002 (k is the sparsity)
        """Loss on rows [B, d]; `dead` bool [m] are the latents AuxK may use."""
        pre = self.pre_activations(x)
        values, indices = top_k(pre, self.spec.k)
        reconstruction = sparse_decode(values, indices, self.W_dec) + self.b_dec
        mse = squared_error(x, reconstruction)
        parts, loss = {"mse": mse}, mse
        n_dead = int(dead.sum())
        if n_dead and self.spec.aux_coefficient:
            parts["aux"] = self._aux(pre, (x - reconstruction).detach(), dead, n_dead)
            loss = mse + self.spec.aux_coefficient * parts["aux"]
        with torch.no_grad():
            fired = fired_counts(values, indices, self.n_latents)
        return Step(loss, reconstruction, fired, fired.sum() / len(x), parts)

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        assert self.W_dec.grad is not None
        remove_parallel(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(self) -> None:
        """Behind the optimiser's step."""
        self.W_dec.copy_(unit_rows(self.W_dec))

    def _aux(self, pre: Tensor, error: Tensor, dead: Tensor, n_dead: int) -> Tensor:
        k = min(self.spec.aux_k or max(1, self.d // 2), n_dead)
        values, indices = top_k(pre.masked_fill(~dead, -torch.inf), k)
        return squared_error(error, sparse_decode(values, indices, self.W_dec))
