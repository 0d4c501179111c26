"""One process that trains alone: the answers to what a learner asks of several.

All rows and all latents are here, and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from trainer.distributed.learner_protocol import Tensors, Totals
from trainer.distributed.world_of_one import ONE_WORLD
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.unit_rows import mean_norm


class SingleProcess:
    """The process itself; it satisfies `Parallel`."""

    world = ONE_WORLD
    parts: Parts = ONE_PART
    latents_here: int | None = None
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

    def clip(self, sae: nn.Module, limit: float) -> None:
        torch.nn.utils.clip_grad_norm_(sae.parameters(), limit)

    def all_rows(self, tensor: Tensor) -> Tensor:
        return tensor

    def latent_positions(self, n: int) -> tuple[int, int]:
        return 0, n

    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        return mean_norm(vectors)

    def agreed(self, good: bool) -> bool:
        return good

    def n_latents(self, here: int) -> int:
        return here

    def whole(self, tensors: Tensors) -> Tensors:
        return tensors

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        return load()

    def nth_largest(self, values: Tensor, n: int) -> Tensor:
        n = min(n, len(values))
        if not n:
            return values.new_zeros(())
        return values.sort(descending=True).values[n - 1]


SINGLE_PROCESS = SingleProcess()
