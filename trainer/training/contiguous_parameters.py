"""Parameters kept as the transpose of a contiguous tensor, shown to the optimiser as
that tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def contiguous_parameters(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, parameters with their gradients and moments are turned so that they lie
    in memory as they are indexed.

    Adam works number by number, so its result is the same; torch's fused step on a CPU
    copies every gradient that is not contiguous, which takes longer than the step. A
    tensor is turned in place: only its strides change.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    turned = [
        p
        for p in parameters
        if p.ndim == 2 and not p.is_contiguous() and p.T.is_contiguous()
    ]
    _turn(optimiser, turned)
    try:
        yield
    finally:
        _turn(optimiser, turned)


@torch.no_grad()
def _turn(optimiser: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        tensors = [
            parameter,
            parameter.grad,
            *optimiser.state.get(parameter, {}).values(),
        ]
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.ndim == 2:
                tensor.t_()
