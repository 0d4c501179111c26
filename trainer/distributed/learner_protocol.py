"""What a learner and its checkpoints ask of the processes that train one SAE.

They may be one or several; the learner is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor, nn

from trainer.saes.dictionary_parts import Parts

if TYPE_CHECKING:
    from trainer.distributed.processes import World
    from trainer.distributed.world_of_one import OneWorld

Tensors = dict[str, Tensor]
"""By name: weights, moments, sums."""


class Totals(NamedTuple):
    """Figures of the whole batch."""

    rows: int | Tensor
    """Its number of rows."""
    fired: Tensor
    """int64 [m]: on how many rows each latent of this process fired."""
    means: Tensors
    """Means over rows, by name: scalars."""
    by_layer: Tensor
    """float64 [2, n_sites]: sums over rows of squared errors and of variances."""


class Parallel(Protocol):
    """One way to share the work on an SAE.

    Tensors that it gives are the same in every process, but for those of latents where
    these are split.
    """

    @property
    def world(self) -> World | OneWorld:
        """The processes, and the numbers that they exchange."""
        ...

    @property
    def parts(self) -> Parts:
        """What a training step asks."""
        ...

    @property
    def latents_here(self) -> int | None:
        """How many latents this process builds; None for all of the spec."""
        ...

    @property
    def uneven_rows(self) -> bool:
        """Whether processes have different numbers of rows, perhaps none."""
        ...

    def has_rows(self, n: int) -> bool:
        """Return whether the whole batch has rows, of which this process has n."""
        ...

    def rows(self, n: int) -> int | Tensor:
        """Return how many rows the whole batch has, of which this process has n.

        It is a number, or a scalar where asking a device for it would be a wait.
        """
        ...

    def reducing(
        self, parameters: Iterable[nn.Parameter]
    ) -> AbstractContextManager[None]:
        """Go around the last backward of an optimiser step.

        After it gradients are those of the whole batch.
        """
        ...

    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        """Return figures of the whole batch from those of this process's n rows.

        Args:
            n: Rows here.
            fired: int64 [m], as in `Totals`.
            means: Scalars by name, means over the rows here.
            by_layer: [2, n_sites], as in `Totals`.
        """
        ...

    def clip(self, sae: nn.Module, limit: float) -> None:
        """Scale gradients so that their norm over the whole SAE is at most `limit`."""
        ...

    def all_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows [n, ...] of all processes, of which each has its own."""
        ...

    def latent_positions(self, n: int) -> tuple[int, int]:
        """Return where n latents here begin among those of all processes, and how many.

        With 3, 2 and 4 latents in three processes the second is given (3, 9).
        """
        ...

    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        """Return the mean norm of vectors of latents, a scalar; 1 where there are none.

        vectors: [n, d], those of the latents here; the mean is over all processes'.
        """
        ...

    def agreed(self, good: bool) -> bool:
        """Return whether it is so in every process."""
        ...

    def n_latents(self, here: int) -> int:
        """Return a number of latents of the whole dictionary, from this process's."""
        ...

    def whole(self, tensors: Tensors) -> Tensors:
        """Return weights, or anything named by them, of the whole dictionary.

        They are on the host, and of use in the lead only.
        """
        ...

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        """Return this process's part of tensors of the whole dictionary.

        load: Gives these. Not every process calls it.
        """
        ...

    def nth_largest(self, values: Tensor, n: int) -> Tensor:
        """Return the n-th largest of the values [.] of all processes: a scalar.

        The smallest of fewer than n; 0 where there are none.
        """
        ...
