"""The exchanges of a training step between processes that share an SAE or a batch.

With these the step is written once, for one process and for several. If two processes
share a dictionary of 8 latents, each makes the reconstruction of its 4 latents, and
`summed` adds the two. `OnePart` is a process alone: it returns what it is given, so
that its training step has no operation more. The implementations for several processes
are in `trainer.distributed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from trainer.kernels.nonzeros import Chosen, Pattern

if TYPE_CHECKING:
    from trainer.saes.sparse_codes import Encoder


class Parts(Protocol):
    """The exchanges between the processes that compute a training step together.

    A tensor is *whole* where all processes have the same, and a *part* where each has
    what its own latents make.
    """

    @property
    def first_latent(self) -> int:
        """The number, in the whole dictionary, of the first latent that is here."""
        ...

    def shared(self, whole: Tensor) -> Tensor:
        """Return a whole tensor on its way into what each process computes for itself.

        Its gradient is the sum of what the processes find. The tensor may have any
        shape, and keeps it.
        """
        ...

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of the processes' parts, whole, of any shape.

        Each part's gradient is that of the sum.
        """
        ...

    def summed_together(self, parts: list[Tensor]) -> list[Tensor]:
        """Return `summed` of several tensors of one shape, in one exchange."""
        ...

    def once(self, whole: Tensor) -> Tensor:
        """Return a whole tensor in one process and 0 in the others.

        What is added to each part so counts once in their sum. Pass it through `shared`
        first, so that all processes have its gradient. The tensor may have any shape,
        and keeps it.
        """
        ...

    def rows_of(self, weight: Tensor, latents: Tensor) -> Tensor:
        """Return rows of a weight of the whole dictionary, of which each has a part.

        Args:
            weight: [m, d], of the latents here.
            latents: int64 [n], as they are numbered in the whole dictionary.

        Returns:
            [n, d], whole.
        """
        ...

    def n_latents(self, here: int) -> int:
        """Return how many latents there are in all processes.

        here: How many of them are in this one.
        """
        ...

    def count(self, here: Tensor) -> Tensor:
        """Return a number of latents in all processes, without a gradient: a scalar."""
        ...

    def any(self, here: Tensor) -> Tensor:
        """Return whether any of bool [n] is true in any process: a bool scalar."""
        ...

    def top_k(
        self, encoder: Encoder, k: int, among: Tensor | None = None
    ) -> tuple[Tensor, Pattern]:
        """Return what is here of the k largest pre-activations of each row.

        Args:
            encoder: The batch and the encoder of the latents here.
            k: How many of the whole dictionary.
            among: int64, the only latents that may be chosen, as `sparse_codes.listed`
                has them; None: all.

        Returns:
            ReLU of the values, [n] or [B, k], with a gradient, and where they are.
        """
        ...

    def batch_top_k(self, encoder: Encoder, n: int) -> Chosen:
        """Return what is here of the largest pre-activations of a whole batch.

        Args:
            encoder: The rows and the encoder of the latents here.
            n: How many of the rows here: k times their number.
        """
        ...

    def least(self, here: Tensor) -> Tensor:
        """Return the smallest values of all processes by element, perhaps in place.

        here: [n] of any float dtype; so is the result.
        """
        ...


class OnePart:
    """The only process: all latents and all rows are here.

    What each method is for, `Parts` says.
    """

    first_latent = 0

    def shared(self, whole: Tensor) -> Tensor:
        return whole

    def summed(self, part: Tensor) -> Tensor:
        return part

    def summed_together(self, parts: list[Tensor]) -> list[Tensor]:
        return parts

    def once(self, whole: Tensor) -> Tensor:
        return whole

    def rows_of(self, weight: Tensor, latents: Tensor) -> Tensor:
        return weight.index_select(0, latents)

    def n_latents(self, here: int) -> int:
        return here

    def count(self, here: Tensor) -> Tensor:
        return here

    def any(self, here: Tensor) -> Tensor:
        return here.any()

    def top_k(
        self, encoder: Encoder, k: int, among: Tensor | None = None
    ) -> tuple[Tensor, Pattern]:
        return encoder.top_k(k, among)

    def batch_top_k(self, encoder: Encoder, n: int) -> Chosen:
        return encoder.batch_top_k(n)

    def least(self, here: Tensor) -> Tensor:
        return here


ONE_PART = OnePart()
