"""The two maps between the parts of an SAE that is split by latents (as in Shoeybi et
al. 2019, "Megatron-LM").

`summed` adds what the processes computed and hands the gradient on as it is; `shared`
hands a tensor on as it is and adds the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.distributed.processes import World


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, world: World) -> Tensor:  # noqa: ARG004 (autograd wants it)
        return world.sum_(part.float().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradients[0], None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (
            ctx.world.sum_(gradients[0].clone(memory_format=torch.contiguous_format)),
            None,
        )


def summed(part: Tensor, world: World) -> Tensor:
    """The sum of the processes' parts, float32, which all go on with alike."""
    out: Tensor = _Summed.apply(part, world)  # type: ignore[no-untyped-call]
    return out


def shared(tensor: Tensor, world: World) -> Tensor:
    """A tensor that all processes have alike, on the way into what each computes for
    itself.
    """
    out: Tensor = _Shared.apply(tensor, world)  # type: ignore[no-untyped-call]
    return out
