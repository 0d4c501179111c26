"""What a learner and its checkpoints ask where an SAE is trained by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from schemas.sae import SaeSpec
from trainer.distributed.processes import World
from trainer.saes.build import Sae
from trainer.saes.ops import ScaledRows
from trainer.training.compiled_forward import Forward

Tensors = dict[str, Tensor]


class Totals(NamedTuple):
    """Of the whole batch. rows: its number of rows; fired: int64 [m], for each latent
    of this process; means: figures by name; by_layer: sums.
    """

    rows: int | Tensor
    fired: Tensor
    means: Tensors
    by_layer: Tensor


class Parallel(Protocol):
    """One way to share the work. Tensors that it gives are the same in every process,
    but for those of latents where these are split.
    """

    world: World

    @property
    def local(self) -> SaeSpec:
        """What this process builds."""
        ...

    def forward_of(self, sae: Sae) -> Forward:
        """The training step of one process."""
        ...

    def selected(self, sae: Sae, rows: ScaledRows) -> ScaledRows:
        """`training.micro.selected` over the whole batch, of this process's rows and
        latents.
        """
        ...

    def has_rows(self, n: int) -> bool:
        """Whether the whole batch has rows, of which this process has n."""
        ...

    def rows(self, n: int) -> int | Tensor:
        """ScaledRows of the whole batch, of which this process has n."""
        ...

    def reducing(
        self, parameters: Iterable[nn.Parameter]
    ) -> AbstractContextManager[None]:
        """Around the last backward of an optimiser step: behind it gradients are those
        of the whole batch.
        """
        ...

    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        """Figures of the whole batch from those of this process's n rows."""
        ...

    def clip(self, sae: nn.Module, limit: float) -> None:
        """Scale gradients so that their norm over the whole SAE is at most `limit`."""
        ...

    def all_rows(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, in every process, where each has its own."""
        ...

    def places(self, n: int) -> tuple[int, int]:
        """Of n latents here, counted in the whole dictionary: how many are before them,
        and how many there are.
        """
        ...

    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        """Mean norm of one vector [d] for each latent, of which these are here; 1 where
        there are none.
        """
        ...

    def agreed(self, good: bool) -> bool:
        """Whether it is so in every process."""
        ...

    def latents(self, n: int) -> int:
        """Latents of the whole dictionary, from a number of this process's latents."""
        ...

    def whole(self, tensors: Tensors) -> Tensors:
        """Weights, or anything named by them, of the whole dictionary, on the host; of
        use in the lead only.
        """
        ...

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        """This process's part of tensors of the whole dictionary, which `load` gives."""
        ...
