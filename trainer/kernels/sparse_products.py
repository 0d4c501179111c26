"""Encoder and decoder of a TopK-like SAE with gradients from the nonzeros alone.

With S [B, m] the sparse codes and G their gradient (the same nonzeros):

    W_dec' = S^T g            W_enc'^T = G^T (x - b_dec)      b_enc' = sum of G over
    rows S' = (g W_dec^T) at S     (x - b_dec)' = G W_enc^T        b_dec' = - W_enc
    b_enc', from the encoder

Each is one pass over B k rows of d numbers; a dense backward takes two to three
products of B d m. Gradients of the weights come out with contiguous [d] rows by latent:
W_enc [d, m] is best kept as the transpose of such a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.kernels import devices
from trainer.kernels.backend import Products, chosen
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.select_across_processes import batch_top_k_of_parts, peers
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
    """The k largest of (x - shift) W + b in each row: values [B, k], not rectified, and
    where they are.

    x: [B, d]; shift: [d] or None for 0; weight: [d, m]; bias: [m]. Differentiable in
    all four. Latents are `pattern.latents` [B * k]. among: int64, the only latents that
    may be chosen; None: all. Those given as ~latent, that is -1 - latent, are there to
    keep a size: their value is -inf.
    """
    centred = _centred(x, shift)
    if among is None:
        values, latents = top_k_of_product(centred, weight, bias, k)
    else:
        own, of_weight, of_bias = part_of(weight, bias, among)
        values, local = top_k_of_product(centred, of_weight, of_bias, k)
        latents = own[local]
    pattern = Pattern.per_row(latents, weight.shape[1])
    return encoded(x, shift, weight, bias, values, pattern, centred), pattern


@torch.no_grad()
def part_of(
    weight: Tensor, bias: Tensor, among: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder of some latents, `among` as in `encode_top_k`: their numbers [n],
    weight [d, n] and bias [n].
    """
    latents = torch.where(among < 0, ~among, among)
    of_bias = bias.index_select(0, latents).masked_fill(among < 0, -torch.inf)
    return latents, weight.T.index_select(0, latents).T, of_bias


def encode_batch_top_k(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Pattern]:
    """The n largest of the whole of (x - shift) W + b, or as many as are above 0:
    values [<= n] and where they are. On a device always n, of which those that fill up
    are 0 and have no gradient.

    Inside `peers.rows_among` of the rows of all processes, with the sum of their n:
    this process's part of them.
    """
    centred = _centred(x, shift)
    values, pattern = choose_batch_top_k(centred, weight, bias, n)
    return encoded(x, shift, weight, bias, values, pattern, centred).relu(), pattern


def choose_batch_top_k(centred: Tensor, weight: Tensor, bias: Tensor, n: int) -> Chosen:
    """As `encode_batch_top_k`, of x - shift and without gradients."""
    others = peers()
    if others is None:
        search = (
            batch_top_k_of_product
            if devices.on_host(centred)
            else batch_top_k_on_device
        )
        values, rows, latents = search(centred, weight, bias, n)
    else:
        values, rows, latents = batch_top_k_of_parts(
            centred, weight, bias, others.total(n), n, others
        )
    return Chosen(values, Pattern.ragged(rows, latents, len(centred), weight.shape[1]))


def encoded(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    values: Tensor,
    pattern: Pattern,
    centred: Tensor | None = None,
) -> Tensor:
    """`values` again, with the gradient that (x - shift) W + b has at the pattern's
    positions: for any selection.

    values: [n], or any shape with n elements in the pattern's order, computed from the
    same arguments by the caller.
    """
    centred = _centred(x, shift) if centred is None else centred
    out: Tensor = _Encoded.apply(
        x, shift, weight, bias, centred, values, pattern, chosen()
    )  # type: ignore[no-untyped-call]
    return out


def _centred(x: Tensor, shift: Tensor | None) -> Tensor:
    return x.detach() if shift is None else x.detach() - shift.detach()


def decoded(
    values: Tensor, decoder: Tensor, pattern: Pattern, bias: Tensor | None = None
) -> Tensor:
    """S W_dec + bias: [B, d]. values: n elements in the pattern's order; decoder: [m,
    d]; bias: [d] or [B, d].
    """
    out: Tensor = _Decoded.apply(values, decoder, bias, pattern, chosen())  # type: ignore[no-untyped-call]
    return out


class _Encoded(torch.autograd.Function):
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
        ctx.pattern, ctx.products = pattern, products
        return values.detach().view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        weight, centred = ctx.saved_tensors
        pattern, products = ctx.pattern, ctx.products
        g = gradients[0].reshape(-1).to(centred.dtype)
        need_x, need_shift, need_weight, need_bias = ctx.needs_input_grad[:4]
        of_x = of_shift = of_weight = of_bias = None
        if need_bias or need_shift:
            of_bias = g.new_zeros(pattern.n_latents).index_add_(0, pattern.latents, g)
        if need_shift and of_bias is not None:
            of_shift = -(weight @ of_bias.to(weight.dtype))
        if need_weight:
            by_latent = products.gather_sum(
                centred, pattern.rows_by_latent, pattern.latent_start, g[pattern.order]
            )
            of_weight = by_latent.T
        if need_x:
            of_x = products.gather_sum(
                weight.T.contiguous(), pattern.latents, pattern.row_start, g
            )
        return of_x, of_shift, of_weight, of_bias, None, None, None, None


class _Decoded(torch.autograd.Function):
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
        ctx.pattern, ctx.products, ctx.shape, ctx.dtype = (
            pattern,
            products,
            values.shape,
            values.dtype,
        )
        ctx.one_bias = bias is None or bias.ndim == 1
        out = products.gather_sum(decoder, pattern.latents, pattern.row_start, flat)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        values, decoder = ctx.saved_tensors
        pattern, products, g = ctx.pattern, ctx.products, gradients[0].contiguous()
        of_values = of_decoder = of_bias = None
        if ctx.needs_input_grad[0]:
            dots = products.row_dots(
                g, pattern.rows, decoder, pattern.latents, pattern.row_start
            )
            of_values = dots.view(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            weights = values[pattern.order]
            of_decoder = products.gather_sum(
                g, pattern.rows_by_latent, pattern.latent_start, weights
            )
        if ctx.needs_input_grad[2]:
            of_bias = g.sum(dim=0) if ctx.one_bias else g
        return of_values, of_decoder, of_bias, None, None
