"""Encoders that compute every latent, without what plain autograd does for nothing.

On a CPU, that is a product and several passes over memory.

1. *The decoder bias costs no product.* An encoder computes (x - b_dec) W + b. Plain
   autograd makes the gradient of each row of x - b_dec, a sixth matrix product of the
   step, only to sum it over rows. Summing first gives the same without that product.
   With g [B, m] the gradient at the pre-activations,

       W'     = (x - b_dec)^T g
       b'     = sum of g over rows
       b_dec' = - W b'

   and where b_dec differs by layer, one such sum for each layer.

2. *The latents are walked through once.* Plain autograd makes nine passes over [B, m]
   from main memory: ReLU, row sums, counts, the penalty's gradient, ReLU's mask, the
   bias' gradient. `relu_codes` does all of it block by block of rows, each while it is
   in cache. With f = ReLU(pre) and s the mean over rows of the sum of f,

       g = (f' + s' / B) where f > 0, else 0

   f' being the gradient at f from elsewhere, and s' the number that comes for s.

On a GPU nothing stays in a cache, so that there is one block, but passes and products
cost as much. When they are compiled, both are plain autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.kernels import devices
from trainer.kernels.layer_sums import rows_of_layers, sums_by_layer

BLOCK_BYTES = 1 << 20  # bytes of a block of rows: about a core's own cache
_Gradients = tuple[Tensor | None, ...]


def affine(
    x: Tensor,
    shift: Tensor | None,
    layer: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Return the pre-activations (x - shift) W + b, [B, m].

    Args:
        x: [B, d].
        shift: The decoder bias that is subtracted: [d], or [n_sites, d] with one for
            each layer; None for 0.
        layer: int64 [B], which row of `shift` each row of x takes.
        weight: [d, m].
        bias: [m].
    """
    if torch.compiler.is_compiling():
        return _centred(x, shift, layer) @ weight + bias
    out: Tensor = _Affine.apply(x, shift, layer, weight, bias)  # type: ignore[no-untyped-call]
    return out


def relu_codes(
    x: Tensor,
    shift: Tensor | None,
    layer: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latents ReLU((x - shift) W + b), and what a step counts of them.

    The gradient that comes for the latents is overwritten: use them once, in a product.

    Args:
        x: [B, d].
        shift: As in `affine`.
        layer: As in `affine`.
        weight: [d, m].
        bias: [m].

    Returns:
        The latents [B, m]; the mean over rows of their sum, []; and on how many rows
        each latent is above 0, int64 [m]. The first two are differentiable.
    """
    if torch.compiler.is_compiling():
        latents = affine(x, shift, layer, weight, bias).relu()
        mean_sum = latents.sum(dim=-1).mean()
        n_fired = (latents.detach() > 0).sum(dim=0)
        return latents, mean_sum, n_fired
    out: tuple[Tensor, Tensor, Tensor] = _ReluCodes.apply(x, shift, layer, weight, bias)  # type: ignore[no-untyped-call]
    return out


def in_cache(values: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return [B, m] as views of blocks of rows that stay in cache.

    Elsewhere than on a CPU, and when compiled, there is one block.

    Args:
        values: [B, m].
        like: A tensor [B, m] of which the blocks shall have as many rows; None: values.
    """
    if torch.compiler.is_compiling():
        return (values,)
    rows = _block_rows(values if like is None else like)
    blocks: tuple[Tensor, ...] = values.split(rows)
    return blocks


def _centred(x: Tensor, shift: Tensor | None, layer: Tensor | None) -> Tensor:
    """Return x - shift, [B, d]."""
    if shift is None:
        return x
    if shift.ndim == 1 or layer is None:
        return x - shift
    return x - rows_of_layers(shift, layer)


class _Affine(torch.autograd.Function):
    """(x - shift) W + b, with b_dec' as in the module's text."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        layer: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        pre, centred, cast_weight = _product(x, shift, layer, weight, bias)
        ctx.save_for_backward(centred, cast_weight, layer)
        _remember_inputs(ctx, x, shift, weight)
        return pre

    @staticmethod
    def backward(ctx: Any, grad_pre: Tensor) -> _Gradients:
        layer = ctx.saved_tensors[2]
        sums = _zero_sums(ctx, grad_pre)
        _add_sums(sums, grad_pre, layer)
        return _gradients(ctx, grad_pre, sums)


class _ReluCodes(torch.autograd.Function):
    """ReLU((x - shift) W + b), the mean of its row sums, and counts, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        layer: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        latents, centred, cast_weight = _product(x, shift, layer, weight, bias)
        n_latents = latents.shape[1]
        n_fired = torch.zeros(n_latents, dtype=torch.int64, device=x.device)
        # Blocks are summed in float32, and their sums, of which there may be thousands,
        # in float64.
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        is_double = latents.dtype == torch.float64
        sum_dtype = torch.float64 if is_double else torch.float32
        for block in _blocks(latents):
            block.relu_()
            total += block.sum(dtype=sum_dtype)
            n_fired += (block > 0).sum(dim=0, dtype=torch.int32)
        ctx.save_for_backward(centred, cast_weight, layer, latents)
        _remember_inputs(ctx, x, shift, weight)
        ctx.mark_non_differentiable(n_fired)
        mean_sum = total / max(1, len(latents))
        return latents, mean_sum.to(x.dtype), n_fired

    @staticmethod
    def backward(
        ctx: Any, grad_latents: Tensor, grad_mean_sum: Tensor, _: Tensor
    ) -> _Gradients:
        layer, latents = ctx.saved_tensors[2:]
        # Each latent adds 1 / B of itself to the mean sum.
        n_rows = max(1, len(latents))
        constant: Tensor | float = grad_mean_sum / n_rows
        # on a GPU, asking for the number would make the host wait
        if devices.on_host(grad_mean_sum):
            constant = float(grad_mean_sum) / n_rows
        # From here on the latents' gradient is turned, in place, into that of the
        # pre-activations.
        grad_pre = grad_latents.contiguous()
        sums = _zero_sums(ctx, grad_pre)
        grad_blocks = _blocks(grad_pre)
        latent_blocks = _blocks(latents)
        layer_blocks: list[Tensor | None] = [None] * len(latent_blocks)
        if layer is not None:
            layer_blocks = list(layer.split(_block_rows(latents)))
        for grad, values, block_layer in zip(
            grad_blocks, latent_blocks, layer_blocks, strict=True
        ):
            grad.add_(constant)
            grad.mul_(values > 0)
            _add_sums(sums, grad, block_layer)
        return _gradients(ctx, grad_pre, sums)


def _product(
    x: Tensor,
    shift: Tensor | None,
    layer: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pre-activations [B, m] and the two factors they were made of.

    All are in autocast's dtype where that is on.
    """
    dtype = x.dtype
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        centred = _centred(x, shift, layer).to(dtype)
        cast_weight = weight.to(dtype)
        pre = torch.addmm(bias.to(dtype), centred, cast_weight)
    return pre, centred, cast_weight


def _remember_inputs(ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor) -> None:
    """Keep what a backward has to know of the inputs besides the saved tensors."""
    ctx.shift_shape = None if shift is None else shift.shape
    ctx.x_dtype = x.dtype
    ctx.weight_dtype = weight.dtype


def _zero_sums(ctx: Any, grad_pre: Tensor) -> Tensor:
    """Return zeros [n_sites, m], or [1, m] where the shift does not differ by layer.

    grad_pre: [B, m].
    """
    per_layer = ctx.shift_shape is not None and len(ctx.shift_shape) == 2
    n_sums = ctx.shift_shape[0] if per_layer else 1
    return grad_pre.new_zeros(n_sums, grad_pre.shape[1], dtype=ctx.weight_dtype)


def _add_sums(sums: Tensor, grad_pre: Tensor, layer: Tensor | None) -> None:
    """Add a block's sum over rows to `sums`, by layer where there are several sums."""
    if len(sums) == 1 or layer is None:
        sums[0] += grad_pre.sum(dim=0, dtype=sums.dtype)
    elif devices.on_host(grad_pre):
        sums.index_add_(0, layer, grad_pre.to(sums.dtype))
    else:
        sums += sums_by_layer(grad_pre.to(sums.dtype), layer, len(sums))


def _gradients(ctx: Any, grad_pre: Tensor, sums: Tensor) -> _Gradients:
    """Return the gradients of x, shift, layer (none), weight and bias.

    Args:
        ctx: What a forward kept.
        grad_pre: [B, m], the gradient at the pre-activations.
        sums: [n_sites, m] or [1, m], its sums over rows.
    """
    centred, weight = ctx.saved_tensors[:2]
    needs_x, needs_shift = ctx.needs_input_grad[:2]
    grad_x = grad_shift = None
    if needs_x:
        grad_x = (grad_pre @ weight.T).to(ctx.x_dtype)
    if needs_shift:
        # [1, m] or [n_sites, m] times [m, d]: no product with B rows
        grad_shift = -(sums @ weight.T.to(sums.dtype))
        grad_shift = grad_shift.reshape(ctx.shift_shape)
    grad_weight = (centred.T @ grad_pre).to(ctx.weight_dtype)
    grad_bias = sums.sum(dim=0)
    return grad_x, grad_shift, None, grad_weight, grad_bias


def _block_rows(latents: Tensor) -> int:
    if not devices.on_host(latents):
        return max(1, len(latents))
    row_bytes = latents.shape[1] * latents.element_size()
    return max(1, BLOCK_BYTES // row_bytes)


def _blocks(latents: Tensor) -> tuple[Tensor, ...]:
    blocks: tuple[Tensor, ...] = latents.split(_block_rows(latents))
    return blocks
