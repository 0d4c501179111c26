"""Chooses which implementation of the sparse products is used.

It is chosen by its name, never by what happens to be installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

from torch import Tensor

from trainer.errors import KernelError
from trainer.kernels import eager

Name = Literal["eager", "triton"]


class Products(Protocol):
    """The two sparse products; `trainer.kernels.eager` says what they compute."""

    def gather_sum(
        self,
        table: Tensor,
        index: Tensor,
        start: Tensor,
        weight: Tensor,
        *,
        uneven: bool = False,
    ) -> Tensor:
        """Return weighted sums [S, d] of rows of a table, as `eager.gather_sum`."""
        ...

    def row_dots(
        self,
        left: Tensor,
        left_index: Tensor,
        right: Tensor,
        right_index: Tensor,
        start: Tensor,
    ) -> Tensor:
        """Return dot products [n] of pairs of rows, as `eager.row_dots` does."""
        ...


# A context variable and not an argument: it would have to pass through every
# architecture, and a thread that trains another run may use another implementation.
_chosen: ContextVar[Products] = ContextVar("products", default=eager)


def products(name: Name) -> Products:
    """Return an implementation by its name.

    Raises:
        KernelError: It cannot run on this machine.
    """
    if name == "eager":
        return eager
    import torch

    if not torch.cuda.is_available():
        raise KernelError(
            "kernels: wanted triton, which needs a CUDA device, and torch finds none;"
            " use kernels: eager"
        )
    try:
        from trainer.kernels import triton_sparse
    except ImportError as error:
        raise KernelError(
            f"kernels: wanted triton, but it cannot be imported ({error}); use kernels:"
            " eager"
        ) from error
    return triton_sparse


def chosen() -> Products:
    """Return the implementation that is in use here.

    A backward runs outside the block that its forward ran in, so a forward keeps the
    implementation for it.
    """
    return _chosen.get()


@contextmanager
def using(implementation: Products) -> Iterator[None]:
    """Use an implementation inside a `with` block."""
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)
