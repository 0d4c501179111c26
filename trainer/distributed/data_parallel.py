"""Data parallelism: every process has the whole SAE and its own rows of each batch.

Losses are means over rows, so a process's gradient counts with its share of the batch's
rows; their sum is the gradient of the whole batch, and every process takes the same
optimiser step. What is not a mean over rows is shared apart: the selection of BatchTopK
(`row_parts`), the latents that fired, the rows drawn for dead ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.distributed.learner_protocol import Tensors, Totals
from trainer.distributed.processes import Waiting, World
from trainer.distributed.row_parts import RowParts
from trainer.distributed.several_processes import SeveralProcesses
from trainer.distributed.undivided import WholeDictionary
from trainer.saes.dictionary_parts import Parts


class DataParallel(WholeDictionary, SeveralProcesses):
    """Equal to one process up to the order of sums; it satisfies `Parallel`."""

    uneven_rows = True

    def __init__(self, world: World, skips: bool = False) -> None:
        """Share the rows of batches.

        Args:
            world: The processes.
            skips: Whether rows that cannot be read are left out, so that a batch may
                have none.
        """
        super().__init__(world)
        self.parts: Parts = RowParts(world)
        self._skips = skips

    def has_rows(self, n: int) -> bool:
        # without skipping every batch has rows, and asking would cost a wait
        return not self._skips or self.world.total(n) > 0

    def rows(self, n: int) -> Tensor:
        """Return how many rows the whole batch has, an int64 scalar on the device."""
        n_here = torch.full((), n, dtype=torch.int64, device=self.world.device)
        return self.world.sum_(n_here)

    @contextmanager
    def reducing(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Sum each gradient as soon as backward has it, while others are computed."""
        works: list[Waiting] = []

        def reduce(parameter: Tensor) -> None:
            assert parameter.grad is not None
            works.append(self.world.sum_later(parameter.grad))

        hooks = [
            parameter.register_post_accumulate_grad_hook(reduce)
            for parameter in parameters
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        # not where backward failed: other processes may never begin these sums
        for work in works:
            work.wait()

    @torch.no_grad()
    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        """Return figures of the whole batch.

        Means are weighted by rows; those of no rows are not looked at. Arguments are
        those of `Parallel.totals`: `fired` is int64 [m], `by_layer` [2, n_sites].
        """
        # A mean of 2.0 over 3 rows here and one of 4.0 over 1 row there are (2.0 * 3 +
        # 4.0 * 1) / 4 = 2.5 over all.
        weighted_means = [value.double() * n for value in means.values()]
        weighted = torch.stack(weighted_means)
        layer_sums = by_layer.double().flatten()
        sums = torch.cat([weighted, layer_sums])
        if not n:  # means of nothing are NaN
            sums = torch.zeros_like(sums)
        rows_here = torch.full((1,), n, dtype=fired.dtype, device=fired.device)
        counts = torch.cat([fired, rows_here])
        # two exchanges under way together: counts are int64, sums float64
        works = [self.world.sum_later(counts), self.world.sum_later(sums)]
        for work in works:
            work.wait()
        rows = counts[-1]
        n_means = len(means)
        whole_means = (sums[:n_means] / rows).unbind()
        return Totals(
            rows=rows,
            fired=counts[:-1],
            means=dict(zip(means, whole_means, strict=True)),
            by_layer=sums[n_means:].reshape(by_layer.shape),
        )

    def all_rows(self, tensor: Tensor) -> Tensor:
        return self.world.gather_rows(tensor)
