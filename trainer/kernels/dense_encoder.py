"""Dense encoders on a CPU: no product and no pass over the latents that plain autograd
would make for nothing.

The decoder bias that an encoder subtracts from its input needs no gradient by rows,
which would cost a sixth matrix product: with df [B, m] the gradient at the
pre-activations,

    W' = (x - b_dec)^T df        b' = sum of df over rows        b_dec' = - (sum of df
    over rows) W^T

(one sum per layer where b_dec differs by layer). And `relu_codes` goes over the latents
block by block, each while it is in cache, where plain autograd makes nine passes from
main memory: ReLU, row sums, counts, the penalty's gradient, ReLU's mask, the bias'
gradient. With f = ReLU(pre), s = mean over rows of sum f and c = s' / B, df = (f' + c)
[f > 0].

Both are plain autograd elsewhere than on a CPU and when they are compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 20
_Gradients = tuple[Tensor | None, ...]


def affine(
    x: Tensor, shift: Tensor | None, layer: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """(x - shift) W + b, [B, m]: x [B, d]; shift [d], or [n_sites, d] with layer int64
    [B], or None for 0; W [d, m].
    """
    if _plainly(x):
        return (x if shift is None else x - _by_row(shift, layer)) @ weight + bias
    out: Tensor = _Affine.apply(x, shift, layer, weight, bias)  # type: ignore[no-untyped-call]
    return out


def relu_codes(
    x: Tensor, shift: Tensor | None, layer: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, m] = ReLU(affine(...)), the mean over rows of their sum (both
    differentiable), and on how many rows each is above 0, int64 [m]. The latents'
    gradient is overwritten: use them once, in a product.
    """
    if _plainly(x):
        latents = affine(x, shift, layer, weight, bias).relu()
        return latents, latents.sum(dim=-1).mean(), (latents.detach() > 0).sum(dim=0)
    out: tuple[Tensor, Tensor, Tensor] = _Codes.apply(x, shift, layer, weight, bias)  # type: ignore[no-untyped-call]
    return out


def in_cache(values: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """[B, m] as blocks of rows that stay in cache (of as many rows as those of `like`);
    whole where `_plainly`.
    """
    if _plainly(values):
        return (values,)
    return tuple(values.split(_block_rows(values if like is None else like)))


def _plainly(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _by_row(shift: Tensor, layer: Tensor | None) -> Tensor:
    return shift if shift.ndim == 1 or layer is None else shift.index_select(0, layer)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        layer: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        pre, centred, narrow = _product(x, shift, layer, weight, bias)
        ctx.save_for_backward(centred, narrow, layer)
        ctx.shift, ctx.dtypes = (
            None if shift is None else shift.shape,
            (
                x.dtype,
                weight.dtype,
            ),
        )
        return pre

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> _Gradients:
        sums = torch.zeros(_sites(ctx), gradient.shape[1], dtype=ctx.dtypes[1])
        _add_sums(sums, gradient, ctx.saved_tensors[2])
        return _gradients(ctx, gradient, sums)


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        layer: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        latents, centred, narrow = _product(x, shift, layer, weight, bias)
        fired, total = (
            torch.zeros(latents.shape[1], dtype=torch.int64),
            torch.zeros((), dtype=torch.float64),
        )
        for block in _blocks(latents):
            block.relu_()
            total += block.sum(
                dtype=torch.float64 if block.dtype == torch.float64 else torch.float32
            )
            fired += (block > 0).sum(dim=0, dtype=torch.int32)
        ctx.save_for_backward(centred, narrow, layer, latents)
        ctx.shift, ctx.dtypes = (
            None if shift is None else shift.shape,
            (
                x.dtype,
                weight.dtype,
            ),
        )
        ctx.mark_non_differentiable(fired)
        return latents, (total / max(1, len(latents))).to(x.dtype), fired

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_mean: Tensor, _: Tensor) -> _Gradients:
        layer, latents = ctx.saved_tensors[2:]
        constant = float(of_mean) / max(1, len(latents))
        gradient = gradient.contiguous()
        sums = torch.zeros(_sites(ctx), gradient.shape[1], dtype=ctx.dtypes[1])
        places = (
            [None] * len(_blocks(latents))
            if layer is None
            else layer.split(_block_rows(latents))
        )
        for block, values, place in zip(
            _blocks(gradient), _blocks(latents), places, strict=True
        ):
            if constant:
                block.add_(constant)
            block.mul_(values > 0)
            _add_sums(sums, block, place)
        return _gradients(ctx, gradient, sums)


def _product(
    x: Tensor, shift: Tensor | None, layer: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, and what they were made of, in autocast's dtype where that is
    on.
    """
    dtype = (
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    )
    with torch.autocast("cpu", enabled=False):
        centred = (x if shift is None else x - _by_row(shift, layer)).to(dtype)
        narrow = weight.to(dtype)
        return torch.addmm(bias.to(dtype), centred, narrow), centred, narrow


def _sites(ctx: Any) -> int:
    return 1 if ctx.shift is None or len(ctx.shift) == 1 else int(ctx.shift[0])


def _add_sums(sums: Tensor, gradient: Tensor, layer: Tensor | None) -> None:
    """Add a block's sums over rows, by layer where they are wanted so."""
    if len(sums) == 1 or layer is None:
        sums[0] += gradient.sum(dim=0, dtype=sums.dtype)
    else:
        sums.index_add_(0, layer, gradient.to(sums.dtype))


def _gradients(ctx: Any, gradient: Tensor, sums: Tensor) -> _Gradients:
    """Of x, shift, layer, weight and bias; sums: [n_sites, m] or [1, m], those of
    `gradient` over rows.
    """
    centred, weight = ctx.saved_tensors[:2]
    of_x, of_weight = ctx.dtypes
    back = (gradient @ weight.T).to(of_x) if ctx.needs_input_grad[0] else None
    shift = None
    if ctx.needs_input_grad[1]:
        shift = -(sums @ weight.T.to(sums.dtype)).reshape(ctx.shift)
    return back, shift, None, (centred.T @ gradient).to(of_weight), sums.sum(dim=0)


def _block_rows(latents: Tensor) -> int:
    return max(1, BLOCK_BYTES // (latents.shape[1] * latents.element_size()))


def _blocks(latents: Tensor) -> tuple[Tensor, ...]:
    return tuple(latents.split(_block_rows(latents)))
