"""The standard SAE: f = ReLU((x - b_dec) W_enc + b_enc), x' = f W_dec + b_dec, loss = |x - x'|^2 + l1 * sum f.

Decoder rows are kept at norm 1 (methods, sections 2 and 3): the part of their gradient that changes the norm is taken
out before the optimiser's step, and they are normalised after it. `tied` uses W_enc = W_dec transposed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import ReluL1
from trainer.saes.ops import Step, remove_parallel, squared_error, unit_rows


class ReluL1Sae(nn.Module):
    """W_enc [d, m] (absent when tied), b_enc [m], W_dec [m, d], b_dec [d]."""

    def __init__(self, spec: ReluL1, d: int) -> None:
        super().__init__()
        self.spec, self.d, self.n_latents = spec, d, spec.size(d)
        self.W_dec = nn.Parameter(unit_rows(torch.randn(self.n_latents, d)))
        self.W_enc = None if spec.tied else nn.Parameter(self.W_dec.detach().T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d))

    @property
    def encoder(self) -> Tensor:
        """[d, m]."""
        return self.W_dec.T if self.W_enc is None else self.W_enc

    def encode(self, x: Tensor) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return ((x - self.b_dec) @ self.encoder + self.b_enc).relu()

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction [B, d] of latents [B, m]."""
        return latents @ self.W_dec + self.b_dec

    def training_step(self, x: Tensor, sparsity: float, dead: Tensor) -> Step:  # noqa: ARG002 (nothing for the dead)
        """Loss on rows [B, d]; `sparsity` in [0, 1] is the warm-up of the penalty."""
        latents = self.encode(x)
        reconstruction = self.decode(latents)
        mse, l1 = squared_error(x, reconstruction), latents.sum(dim=-1).mean()
        with torch.no_grad():
            fired = (latents > 0).sum(dim=0)
        loss = mse + self.spec.l1 * sparsity * l1
        return Step(loss, reconstruction, fired, fired.sum() / len(x), {"mse": mse, "l1": l1})

    def before_update(self) -> None:
        """Between backward and the optimiser's step."""
        assert self.W_dec.grad is not None
        remove_parallel(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(self) -> None:
        """Behind the optimiser's step."""
        self.W_dec.copy_(unit_rows(self.W_dec))
