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

    A tensor is *whole* if all processes have the same one. It is a *part* if each
    process has only the contribution of its own latents.
    """

    @property
    def first_latent(self) -> int:
        """The number, in the whole dictionary, of the first latent that is here."""
        ...

    def shared(self, whole: Tensor) -> Tensor:
        """Return a whole tensor [...] again, for use in what each process computes.

        In the backward pass its gradient is the sum over processes.
        """
        ...

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of the processes' parts [...]: a whole tensor [...].

        In the backward pass each part gets the gradient of the sum.
        """
        ...

    def summed_together(self, parts: list[Tensor]) -> list[Tensor]:
        """Return `summed` of several parts [...] of one shape, in one exchange."""
        ...

    def once(self, whole: Tensor) -> Tensor:
        """Return a whole tensor [...] in one process, and zeros [...] in the others.

        So it counts once when it is added to each process's part, and the parts are
        summed. Pass it through `shared` first, so that all processes get its gradient.
        """
        ...

    def rows_of(self, weight: Tensor, latents: Tensor) -> Tensor:
        """Return some rows of a weight, whose rows are divided among processes.

        Args:
            weight: [m, d], the rows of the latents here.
            latents: The rows that are wanted, int64 [n], as they are numbered in the
                whole dictionary.

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
        """Return the sum over processes of a count [...], without a gradient."""
        ...

    def any(self, here: Tensor) -> Tensor:
        """Return whether any of bool [n] is true in any process: a bool scalar."""
        ...

    def top_k(
        self, encoder: Encoder, k: int, among: Tensor | None = None
    ) -> tuple[Tensor, Pattern]:
        """Return those of each row's k largest pre-activations that are here.

        Args:
            encoder: The batch and the encoder of the latents here.
            k: How many latents of the whole dictionary a row keeps.
            among: int64, the only latents that may be chosen, as `sparse_codes.listed`
                has them; None: all.

        Returns:
            ReLU of the values, [n] or [B, k], with a gradient, and where they are.
        """
        ...

    def batch_top_k(self, encoder: Encoder, n: int) -> Chosen:
        """Return those of the whole batch's largest pre-activations that are here.

        Args:
            encoder: The rows and the encoder of the latents here.
            n: k times the number of rows here. The sum over processes that share the
                rows is how many pre-activations the whole batch keeps.
        """
        ...

    def least(self, here: Tensor) -> Tensor:
        """Return the minimum over processes of each element, perhaps in place.

        here: [n] of any float dtype; the result has the same shape and dtype.
        """
        ...


class OnePart:
    """The only process: all latents and all rows are here. See `Parts`."""

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
