"""The parts of a batch that is shared by rows: every process has all latents."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.distributed.processes import World
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.select_across_processes import batch_top_k_of_parts
from trainer.saes.dictionary_parts import OnePart
from trainer.saes.sparse_codes import Encoder


class RowParts(OnePart):
    """One process's rows: as a process alone, but selecting over the rows of all."""

    def __init__(self, world: World) -> None:
        self._world = world

    @torch.no_grad()
    def batch_top_k(self, encoder: Encoder, n: int) -> Chosen:
        """Return the largest of the whole batch that are in this process's rows."""
        # k times the rows of each process, which may differ at the end of an epoch
        n_of_all = self._world.total(n)
        values, rows, latents = batch_top_k_of_parts(
            encoder.centred,
            encoder.weight,
            encoder.bias,
            n_of_all,
            n,
            self._world,
        )
        n_latents = encoder.weight.shape[1]
        return Chosen(values, Pattern.ragged(rows, latents, encoder.n_rows, n_latents))

    def least(self, here: Tensor) -> Tensor:
        return self._world.min_(here)
