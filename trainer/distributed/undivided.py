"""Answers to a learner about rows or latents that are not divided among processes.

A process alone has all rows and all latents. Where a dictionary is split, each process
still has all rows; where a batch is, each still has all latents. What each method is
for, `learner_protocol.Parallel` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from trainer.distributed.learner_protocol import Tensors, Totals
from trainer.saes.unit_rows import mean_norm


class WholeBatch:
    """Every process has all rows of each batch."""

    uneven_rows = False

    def has_rows(self, n: int) -> bool:
        return n > 0

    def rows(self, n: int) -> int:
        return n

    def reducing(
        self,
        parameters: Iterable[nn.Parameter],  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        return Totals(n, fired, means, by_layer)

    def all_rows(self, tensor: Tensor) -> Tensor:
        return tensor


class WholeDictionary:
    """Every process has all latents."""

    latents_here: int | None = None

    def clip(self, sae: nn.Module, limit: float) -> None:
        # gradients are those of the whole batch already
        torch.nn.utils.clip_grad_norm_(sae.parameters(), limit)

    def latent_positions(self, n: int) -> tuple[int, int]:
        return 0, n

    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        return mean_norm(vectors)

    def n_latents(self, here: int) -> int:
        return here

    def latent_counts(self, here: Tensor) -> Tensor:
        return here

    def whole(self, tensors: Tensors) -> Tensors:
        return tensors

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        return load()
