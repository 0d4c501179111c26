"""Sums over processes that autograd goes through, for a dictionary split by latents.

As in Shoeybi et al. 2019, "Megatron-LM": `summed` adds what the processes computed and
hands the gradient on as it is; `shared` hands a tensor on as it is and adds the
gradients. With x' = f_1 W_1 + f_2 W_2 + b_dec of two processes, `summed` makes x' of
the two products, and each product's gradient is that of x'; x - b_dec goes into both
encoders, so that the gradient at b_dec is the sum of what they find.

torch's own DTensor was tried (2.13): it has no rule for `nonzero`, sparse kernels do
not take it, `topk` over split latents moves the whole [B, m] (32 times what is moved
here, for k 32 of 2,048), a dense step took 183 ms for 118 (2 processes on a CPU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.distributed.processes import World


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, world: World) -> Tensor:  # noqa: ARG004 (autograd wants it)
        copy = part.float().clone(memory_format=torch.contiguous_format)
        return world.sum_(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        # every process has the whole sum's gradient, which is that of its part
        return gradients[0], None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        copy = gradients[0].clone(memory_format=torch.contiguous_format)
        return ctx.world.sum_(copy), None


def summed(part: Tensor, world: World) -> Tensor:
    """Return the sum of the processes' parts, the same in all of them.

    part: This process's part, float32 [...] of the same shape in all processes; the
        sum has that shape too.
    """
    out: Tensor = _Summed.apply(part, world)  # type: ignore[no-untyped-call]
    return out


def shared(tensor: Tensor, world: World) -> Tensor:
    """Return the same tensor, with a gradient that is summed over the processes.

    tensor: [...], of any shape. All processes have the same one, and each uses it in
        what it computes for itself.
    """
    out: Tensor = _Shared.apply(tensor, world)  # type: ignore[no-untyped-call]
    return out
