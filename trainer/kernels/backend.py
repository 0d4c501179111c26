"""Which implementation of the sparse products is used: chosen by name, never by what
happens to be installed.
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
    """The two products; `eager` says what they are."""

    def gather_sum(
        self, table: Tensor, index: Tensor, start: Tensor, weight: Tensor
    ) -> Tensor: ...

    def row_dots(
        self,
        left: Tensor,
        left_index: Tensor,
        right: Tensor,
        right_index: Tensor,
        start: Tensor,
    ) -> Tensor: ...


_chosen: ContextVar[Products] = ContextVar("products", default=eager)


def products(name: Name) -> Products:
    """An implementation by name. Raises KernelError where it cannot run."""
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
    """The implementation in force here; a backward uses that of its forward."""
    return _chosen.get()


@contextmanager
def using(implementation: Products) -> Iterator[None]:
    """Use an implementation inside this block."""
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)
