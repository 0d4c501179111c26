"""Shows parameters to the optimiser as they lie in memory.

The encoder of the TopK kinds is kept as the transpose of a contiguous tensor. While the
optimiser takes its step, it sees that tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def contiguous_parameters(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the `with`, turn parameters so that they are contiguous in memory.

    Their gradients and moments are turned with them. Adam works number by number, so
    its result is the same; torch's fused step on a CPU copies every gradient that is
    not contiguous, which takes longer than the step. A tensor is turned in place: only
    its strides change.
    """
    turned = []
    for group in optimiser.param_groups:
        turned += [parameter for parameter in group["params"] if _is_turned(parameter)]
    # They are listed now, since once turned they cannot be told from the others.
    _turn(optimiser, turned)
    try:
        yield
    finally:
        _turn(optimiser, turned)


def _is_turned(parameter: Tensor) -> bool:
    """Return whether a matrix is the transpose of a contiguous one."""
    if parameter.ndim != 2 or parameter.is_contiguous():
        return False
    return parameter.T.is_contiguous()


@torch.no_grad()
def _turn(optimiser: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        tensors = [
            parameter,
            parameter.grad,
            *optimiser.state.get(parameter, {}).values(),
        ]
        for tensor in tensors:
            # Adam also keeps the number of updates, which has no axes to turn
            if isinstance(tensor, Tensor) and tensor.ndim == 2:
                tensor.t_()
