"""Data parallelism: every process has the whole SAE and its own rows of each batch.

Losses are means over rows, so a process's gradient counts with its share of the batch's
rows; their sum is the gradient of the whole batch, and every process takes the same
optimiser step. What is no mean over rows is shared apart: the selection of BatchTopK
(`kernels.peers`), the latents that fired, the rows drawn for dead ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from schemas.sae import SaeSpec
from schemas.train import TrainSpec
from trainer.distributed.parallel import Tensors, Totals
from trainer.distributed.processes import Waiting, World
from trainer.kernels.select_across_processes import rows_among
from trainer.saes.build import Sae
from trainer.saes.ops import Penalty, ScaledRows, Step
from trainer.training.compiled_forward import Forward, forward_of
from trainer.training.micro_batches import selected
from trainer.training.resample_dead import mean_norm


class DataParallel:
    """Equal to one process up to the order of sums."""

    def __init__(self, world: World, spec: TrainSpec, skips: bool = False) -> None:
        self.world, self._spec, self._skips = world, spec, skips

    @property
    def local(self) -> SaeSpec:
        return self._spec.sae

    def forward_of(self, sae: Sae) -> Forward:
        """Selections go over the rows of all processes."""
        plain = forward_of(sae, self._spec.compile, uneven=True)

        def forward(rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:
            with rows_among(self.world):
                return plain(rows, penalty, dead)

        return forward

    def selected(self, sae: Sae, rows: ScaledRows) -> ScaledRows:
        with rows_among(self.world):
            return selected(sae, rows)

    def has_rows(self, n: int) -> bool:
        # else asking the device would cost a wait
        return not self._skips or self.world.total(n) > 0

    def rows(self, n: int) -> Tensor:
        """On the device: nothing waits for it."""
        return self.world.sum_(
            torch.full((), n, dtype=torch.int64, device=self.world.device)
        )

    @contextmanager
    def reducing(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Each gradient is summed as soon as backward has it, beside the computation of
        the others.
        """
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
        for work in works:
            work.wait()

    @torch.no_grad()
    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        """Means are weighted by rows; those of no rows are not looked at."""
        figures = torch.stack([value.double() * n for value in means.values()])
        local = torch.cat([figures, by_layer.double().flatten()])
        if not n:
            local = torch.zeros_like(local)
        counts = torch.cat(
            [fired, torch.full((1,), n, dtype=fired.dtype, device=fired.device)]
        )
        works = [self.world.sum_later(counts), self.world.sum_later(local)]
        for work in works:
            work.wait()
        rows, figures = counts[-1], local[: len(means)] / counts[-1]
        whole = dict(zip(means, figures.unbind(), strict=True))
        return Totals(
            rows, counts[:-1], whole, local[len(means) :].reshape(by_layer.shape)
        )

    def clip(self, sae: nn.Module, limit: float) -> None:
        """Gradients are those of the whole batch already."""
        torch.nn.utils.clip_grad_norm_(sae.parameters(), limit)

    def all_rows(self, tensor: Tensor) -> Tensor:
        return self.world.gather_rows(tensor)

    def places(self, n: int) -> tuple[int, int]:
        return 0, n

    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        return mean_norm(vectors)

    def agreed(self, good: bool) -> bool:
        return self.world.least(float(good)) > 0

    def latents(self, n: int) -> int:
        return n

    def whole(self, tensors: Tensors) -> Tensors:
        return tensors

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        return load()
