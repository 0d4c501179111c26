"""Sums of rows by their layer, with the same bits at every call, on a GPU too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.kernels import devices


def sums_by_layer(values: Tensor, layer: Tensor, n_layers: int) -> Tensor:
    """Return the sum of the rows of each layer, [n_layers, p].

    Adding to an index, a GPU adds in any order, and rounds otherwise at every call. A
    product with zeros and ones has one order.

    Args:
        values: [B, p].
        layer: int64 [B].
        n_layers: How many there are.
    """
    if devices.on_host(values):
        zeros = values.new_zeros(n_layers, values.shape[1])
        return zeros.index_add_(0, layer, values)
    layers = torch.arange(n_layers, device=layer.device)
    is_of_layer = (layers[:, None] == layer).to(values.dtype)
    return is_of_layer @ values


def rows_of_layers(values: Tensor, layer: Tensor) -> Tensor:
    """Return the row of `values` that each layer has, [B, p]; differentiable.

    Args:
        values: [n_layers, p].
        layer: int64 [B].
    """
    if devices.on_host(values):
        return values.index_select(0, layer)
    out: Tensor = _RowsOfLayers.apply(values, layer)  # type: ignore[no-untyped-call]
    return out


class _RowsOfLayers(torch.autograd.Function):
    """`index_select`, with a gradient that is summed in one order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: Tensor) -> Tensor:
        ctx.save_for_backward(layer)
        ctx.n_layers = len(values)
        return values.index_select(0, layer)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (layer,) = ctx.saved_tensors
        return sums_by_layer(gradient, layer, ctx.n_layers), None
