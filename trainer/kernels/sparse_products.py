"""Encoder and decoder of a TopK-like SAE, with gradients from the nonzeros alone.

Let S [B, m] be the sparse codes and S' the gradient of the loss at their nonzeros, of
which there are B k. Likewise W' is the gradient at W, and g [B, d] the gradient at the
reconstruction S W_dec + bias. Then

    decoder    S'       = (g W_dec^T) at the nonzeros of S     `row_dots`
               W_dec'   = S^T g                                `gather_sum` by latent
    encoder    W_enc'^T = S'^T (x - b_dec)                     `gather_sum` by latent
               b_enc'   = sum of S' over rows
               x'       = S' W_enc^T                           `gather_sum` by row
               b_dec'   = - W_enc b_enc'                       its part by the encoder

Each product is one pass over B k rows of d numbers; a dense backward takes two to three
products of B d m. TopK is Gao et al. 2024
(docs/methods.md#6-the-kinds-that-the-field-uses).

The gradient of a weight comes out with one contiguous row [d] for each latent. So W_enc
[d, m] is best kept as the transpose of a contiguous tensor [m, d]: gradient and weight
then lie alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.kernels import devices
from trainer.kernels.backend import Products, chosen
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.topk_select import (
    batch_top_k_of_product,
    batch_top_k_on_device,
    top_k_of_product,
)

_Gradients = tuple[Tensor | None, ...]


def encode_top_k(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    k: int,
    among: Tensor | None = None,
) -> tuple[Tensor, Pattern]:
    """Return the k largest pre-activations (x - shift) W + b of each row.

    Differentiable in x, shift, weight and bias.

    Args:
        x: [B, d].
        shift: [d], the decoder bias that is subtracted; None for 0.
        weight: [d, m].
        bias: [m].
        k: How many of each row.
        among: int64, the only latents that may be chosen; None: all of them. An entry
            ~latent, that is -1 - latent, keeps the tensor's size the same without
            offering that latent: its pre-activation counts as -inf.

    Returns:
        Their values [B, k], not rectified, and where they are; `pattern.latents` is
        [B * k].
    """
    centred = _centred(x, shift)
    if among is None:
        values, latents = top_k_of_product(centred, weight, bias, k)
    else:
        numbers, part_weight, part_bias = part_of(weight, bias, among)
        values, indices = top_k_of_product(centred, part_weight, part_bias, k)
        latents = numbers[indices]
    pattern = Pattern.per_row(latents, weight.shape[1])
    return encoded(x, shift, weight, bias, values, pattern, centred), pattern


@torch.no_grad()
def part_of(
    weight: Tensor, bias: Tensor, among: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the part of an encoder that computes some of its latents.

    Args:
        weight: [d, m].
        bias: [m].
        among: int64 [n], as in `encode_top_k`.

    Returns:
        The latents' numbers, int64 [n], their weight [d, n] and bias [n]; the bias is
        -inf for those that must not be chosen.
    """
    is_excluded = among < 0
    latents = torch.where(is_excluded, ~among, among)
    part_bias = bias.index_select(0, latents)
    part_bias = part_bias.masked_fill(is_excluded, -torch.inf)
    # W_enc is kept as the transpose of contiguous rows, one for each latent.
    part_weight = weight.T.index_select(0, latents).T
    return latents, part_weight, part_bias


def encode_batch_top_k(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    n: int,
) -> tuple[Tensor, Pattern]:
    """Return the n largest pre-activations (x - shift) W + b of a whole batch.

    Where fewer are above 0, it is those. Differentiable in x, shift, weight and bias.
    Arguments are those of `encode_top_k`.

    Returns:
        Their values [at most n] and where they are. On a device there are always n;
        those that only fill up are 0 and have no gradient.
    """
    centred = _centred(x, shift)
    values, pattern = choose_batch_top_k(centred, weight, bias, n)
    values = encoded(x, shift, weight, bias, values, pattern, centred)
    # ReLU has no gradient at 0, and so none goes to what only fills up
    return values.relu(), pattern


def choose_batch_top_k(centred: Tensor, weight: Tensor, bias: Tensor, n: int) -> Chosen:
    """Select as `encode_batch_top_k` does, without gradients.

    Args:
        centred: [B, d], x - shift.
        weight: [d, m].
        bias: [m].
        n: How many of the whole batch.
    """
    on_host = devices.on_host(centred)
    search = batch_top_k_of_product if on_host else batch_top_k_on_device
    values, rows, latents = search(centred, weight, bias, n)
    pattern = Pattern.ragged(rows, latents, len(centred), weight.shape[1])
    return Chosen(values, pattern)


def encoded(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    values: Tensor,
    pattern: Pattern,
    centred: Tensor | None = None,
) -> Tensor:
    """Return `values` again, with the gradient of (x - shift) W + b at their positions.

    A selection computes its values without gradients, in whatever way is fastest; this
    gives them back to autograd.

    Args:
        x: [B, d].
        shift: [d], or None for 0.
        weight: [d, m].
        bias: [m].
        values: [n], or any shape with n elements in the pattern's order, computed by
            the caller from the arguments above.
        pattern: Where they are.
        centred: [B, d], x - shift, where the caller has it already.

    Returns:
        The values, in the shape in which they came.
    """
    if centred is None:
        centred = _centred(x, shift)
    out: Tensor = _Encoded.apply(
        x, shift, weight, bias, centred, values, pattern, chosen()
    )  # type: ignore[no-untyped-call]
    return out


def _centred(x: Tensor, shift: Tensor | None) -> Tensor:
    """Return x - shift as a constant."""
    if shift is None:
        return x.detach()
    return x.detach() - shift.detach()


def decoded(
    values: Tensor,
    decoder: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the reconstruction S W_dec + bias, [B, d].

    Differentiable in values, decoder and bias.

    Args:
        values: n elements of any shape, in the pattern's order.
        decoder: [m, d].
        pattern: Where the values are in S [B, m].
        bias: [d] or [B, d]; None for 0.
    """
    out: Tensor = _Decoded.apply(values, decoder, bias, pattern, chosen())  # type: ignore[no-untyped-call]
    return out


class _Encoded(torch.autograd.Function):
    """The identity on `values`, with the encoder's gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # noqa: ARG004 (autograd wants it as an argument)
        shift: Tensor | None,  # noqa: ARG004
        weight: Tensor,
        bias: Tensor,  # noqa: ARG004
        centred: Tensor,
        values: Tensor,
        pattern: Pattern,
        products: Products,
    ) -> Tensor:
        ctx.save_for_backward(weight, centred)
        ctx.pattern = pattern
        # A backward may run after the block that chose the implementation.
        ctx.products = products
        return values.detach().view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        weight, centred = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        products: Products = ctx.products
        needs_x, needs_shift, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        grad_values = gradients[0].reshape(-1).to(centred.dtype)
        grad_x = grad_shift = grad_weight = grad_bias = None
        if needs_bias or needs_shift:
            grad_bias = _sums_by_latent(grad_values, pattern, products)
        if needs_shift and grad_bias is not None:
            # x' summed over rows, but summed before the product and not after it.
            grad_shift = -(weight @ grad_bias.to(weight.dtype))
        if needs_weight:
            by_latent = products.gather_sum(
                centred,
                pattern.rows_by_latent,
                pattern.latent_start,
                grad_values[pattern.order],
                uneven=True,
            )
            grad_weight = by_latent.T
        if needs_x:
            grad_x = products.gather_sum(
                weight.T.contiguous(), pattern.latents, pattern.row_start, grad_values
            )
        return grad_x, grad_shift, grad_weight, grad_bias, None, None, None, None


def _sums_by_latent(values: Tensor, pattern: Pattern, products: Products) -> Tensor:
    """Return the sum of the values [n] of each latent, [m].

    Adding to an index, a GPU adds in any order, and rounds otherwise at every call.
    """
    if devices.on_host(values):
        sums = values.new_zeros(pattern.n_latents)
        return sums.index_add_(0, pattern.latents, values)
    ones = values.new_ones(pattern.n_rows, 1)
    return products.gather_sum(
        ones,
        pattern.rows_by_latent,
        pattern.latent_start,
        values[pattern.order],
        uneven=True,
    )[:, 0]


class _Decoded(torch.autograd.Function):
    """S W_dec + bias."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        decoder: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        products: Products,
    ) -> Tensor:
        flat = values.reshape(-1).to(decoder.dtype)
        ctx.save_for_backward(flat, decoder)
        ctx.pattern = pattern
        ctx.products = products
        ctx.values_shape = values.shape
        ctx.values_dtype = values.dtype
        ctx.one_bias = bias is None or bias.ndim == 1
        out = products.gather_sum(decoder, pattern.latents, pattern.row_start, flat)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        values, decoder = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        products: Products = ctx.products
        needs_values, needs_decoder, needs_bias = ctx.needs_input_grad[:3]
        grad_output = gradients[0].contiguous()
        grad_values = grad_decoder = grad_bias = None
        if needs_values:
            dots = products.row_dots(
                grad_output, pattern.rows, decoder, pattern.latents, pattern.row_start
            )
            grad_values = dots.view(ctx.values_shape).to(ctx.values_dtype)
        if needs_decoder:
            grad_decoder = products.gather_sum(
                grad_output,
                pattern.rows_by_latent,
                pattern.latent_start,
                values[pattern.order],
                uneven=True,
            )
        if needs_bias:
            grad_bias = grad_output.sum(dim=0) if ctx.one_bias else grad_output
        return grad_values, grad_decoder, grad_bias, None, None
