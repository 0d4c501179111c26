"""The interface between a learner and the processes that train its SAE together.

There may be one process or several: the learner and its checkpoints are written once,
and call `Parallel`. `SingleProcess`, `DataParallel` and `SplitDictionary` implement it.
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
"""Tensors by name: weights, Adam's moments, sums."""


class Totals(NamedTuple):
    """Figures of the whole batch, of which each process may have some rows."""

    rows: int | Tensor
    """The number of rows of the whole batch; a tensor is an int64 scalar."""
    fired: Tensor
    """int64 [m]: the number of rows on which each latent of this process fired."""
    means: Tensors
    """Means over all rows of the batch, scalars by name, such as `loss`."""
    by_layer: Tensor
    """float64 [2, n_sites]: sums over rows of squared errors and of variances."""


class Parallel(Protocol):
    """One way to share the work on an SAE among processes.

    All processes call the same methods in the same order. They get the same tensors,
    except for tensors by latent if the dictionary is split: these are about a process's
    own latents.
    """

    @property
    def world(self) -> World | OneWorld:
        """The processes themselves, for exchanges of single numbers."""
        ...

    @property
    def parts(self) -> Parts:
        """The exchanges between processes inside a training step."""
        ...

    @property
    def latents_here(self) -> int | None:
        """The number of latents that this process builds; None for all of the spec."""
        ...

    @property
    def uneven_rows(self) -> bool:
        """True if processes may have different numbers of rows, also none."""
        ...

    def has_rows(self, n: int) -> bool:
        """Return whether the batch has rows in any process.

        n: The number of rows in this process.
        """
        ...

    def rows(self, n: int) -> int | Tensor:
        """Return how many rows the batch has in all processes together.

        n: The number of rows in this process.

        The result is an int; or, if the host would have to wait for that, an int64
        scalar on the device.
        """
        ...

    def reducing(
        self, parameters: Iterable[nn.Parameter]
    ) -> AbstractContextManager[None]:
        """Sum gradients over processes, as a `with` block around a backward pass.

        It goes around the last backward pass of an optimiser step. After the block the
        gradients are those of the whole batch.

        parameters: The parameters with gradients, of the SAE in this process.
        """
        ...

    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        """Return the figures of the whole batch, from those of this process's rows.

        Args:
            n: The number of rows in this process.
            fired: The number of these rows on which each latent fired, int64 [m].
            means: Means over these rows, scalars by name.
            by_layer: Sums over these rows, as in `Totals`, float64 [2, n_sites].
        """
        ...

    def clip(self, sae: nn.Module, limit: float) -> None:
        """Scale gradients so that their norm over the whole SAE is at most `limit`."""
        ...

    def all_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes, one process after the other, [., ...].

        tensor: The rows in this process, [n, ...].
        """
        ...

    def latent_positions(self, n: int) -> tuple[int, int]:
        """Return the number of this process's first latent, and how many there are.

        Latents are numbered through all processes. In numbers: three processes have 3,
        2 and 4 latents. The second one calls this with n = 2 and gets (3, 9).

        n: The number of latents in this process.
        """
        ...

    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        """Return the mean norm of the vectors of all processes; 1 if there are none.

        vectors: [n, d], the vectors in this process. The mean over all processes is a
            scalar.
        """
        ...

    def agreed(self, good: bool) -> bool:
        """Return whether `good` is true in every process."""
        ...

    def n_latents(self, here: int) -> int:
        """Return a count of latents over the whole dictionary.

        here: The count over this process's latents.
        """
        ...

    def latent_counts(self, here: Tensor) -> Tensor:
        """Return counts of latents over the whole dictionary, int64 [n].

        here: The counts over this process's latents, int64 [n].
        """
        ...

    def whole(self, tensors: Tensors) -> Tensors:
        """Return tensors of the whole dictionary, joined from those of all processes.

        tensors: This process's part, by the names of weights: the weights themselves,
            or moments or averages of them.

        The result is on the host. Only the lead gets all of it.
        """
        ...

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        """Return this process's part of tensors of the whole dictionary.

        load: Returns the tensors of the whole dictionary. If the dictionary is split,
            only the lead calls it, and sends the others their parts.
        """
        ...

    def nth_largest(self, values: Tensor, n: int) -> Tensor:
        """Return the n-th largest value of all processes, a scalar.

        If there are fewer than n values the result is the smallest, and 0 if none.

        values: The values in this process, [.].
        """
        ...
