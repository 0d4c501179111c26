"""Selection of the largest pre-activations, exactly, without keeping the dense [B, m]
product.

A block of rows is multiplied, searched while it is still in cache, and overwritten by
the next. The search never sorts whole rows: the k largest of a row lie in the k groups
whose largest members are largest, so only those are looked at.

On a GPU nothing here asks for a number that the device has to compute first, but for
one: `batch_top_k_on_device` asks once whether its guess held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_CPU_BLOCK_BYTES = 12 << 20  # a share of the last-level cache
_GPU_BLOCK_BYTES = 1 << 30
_MEMBERS = 16  # of a group, in multiples: near sqrt(m / k) for the usual m and k
_SAMPLE_ROWS, _MARGIN = 64, 2
# candidates that a device keeps for each entry of the result; about `_MARGIN` of them
# are expected
ROOM = 8


def largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk(pre, k, sorted=False) along the last axis of [B, m], faster where k is
    far below m.

    Among equal values the choice may be another than torch's; values are the same. NaN
    counts as the largest.
    """
    n_rows, m = pre.shape
    n_groups = m // _MEMBERS
    if m % _MEMBERS or 4 * k > n_groups or not pre.is_contiguous():
        values, latents = pre.topk(k, dim=-1, sorted=False)
        return values, latents
    groups = (
        pre.view(n_rows, _MEMBERS, n_groups)
        .amax(dim=1)
        .topk(k, dim=-1, sorted=False)
        .indices
    )
    members = torch.arange(0, m, n_groups, device=pre.device)
    candidates = (members[:, None] + groups[:, None, :]).view(n_rows, _MEMBERS * k)
    values, at = pre.gather(1, candidates).topk(k, dim=-1, sorted=False)
    return values, candidates.gather(1, at)


def blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    """x @ weight + bias by blocks of rows: (first row, [b, m]); a block is overwritten
    by the next.

    x: [B, d]; weight: [d, m]; bias: [m]. Under autocast the product is in its dtype,
    else in x's.
    """
    device = x.device.type
    dtype = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device)
        else x.dtype
    )
    size = max(
        1,
        (_CPU_BLOCK_BYTES if device == "cpu" else _GPU_BLOCK_BYTES)
        // (weight.shape[1] * dtype.itemsize),
    )
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    buffer = x.new_empty(min(size, len(x)), weight.shape[1])
    for first in range(0, len(x), size):
        part = x[first : first + size]
        yield first, torch.addmm(bias, part, weight, out=buffer[: len(part)])


@torch.no_grad()
def top_k_of_product(
    x: Tensor, weight: Tensor, bias: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest of each row of x @ weight + bias: values in x's dtype and latents,
    both [B, k].
    """
    values = x.new_empty(len(x), k)
    latents = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for first, pre in blocks(x, weight, bias):
        found = largest(pre, k)
        for out, part in zip((values, latents), found, strict=True):
            out[first : first + len(part)] = part
    return values, latents


@torch.no_grad()
def batch_top_k_of_product(
    x: Tensor, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest of all of x @ weight + bias, or as many as are above 0: values,
    rows and latents, by row.

    Of equal ones the first; NaN counts as the largest, so that it is not hidden. A
    threshold guessed from some of the rows, low enough nearly always, bounds what has
    to be sorted; where it proves too high the product is searched once more without it.
    The result does not depend on the guess.
    """
    guess = first_threshold(x, weight, bias, n)
    values, at = above(x, weight, bias, guess)
    if len(at) < n and guess > 0:
        values, at = above(x, weight, bias, 0.0)
    if len(at) > n:
        last = values.topk(n).values[-1]
        more, same = ~(values <= last), values == last
        keep = more | (same & (same.cumsum(0) <= n - more.sum()))
        values, at = values[keep], at[keep]
    m = weight.shape[1]
    return values, at // m, at % m


@torch.no_grad()
def batch_top_k_on_device(
    x: Tensor, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `batch_top_k_of_product`, always n entries: where fewer are above 0, the last
    ones are 0, in the last place.

    n: at most the product's entries. Sizes never depend on values, so that the host
    runs ahead of the device; it waits once, to hear whether the guessed threshold left
    n entries and no more than there was room for. Where it did not, which is rare, the
    slower search answers, with the same result.
    """
    m = weight.shape[1]
    values, at, good = _candidates(x, weight, bias, n)
    if not good:  # the one wait
        values, rows, latents = batch_top_k_of_product(x, weight, bias, n)
        at = rows * m + latents
    keep = values != 0
    last = _padded(values, n, 0).topk(n).values[-1]
    more, same = keep & ~(values <= last), keep & (values == last)
    keep = more | (same & (same.cumsum(0) <= n - more.sum()))
    place = torch.nonzero_static(keep, size=n, fill_value=len(values))[:, 0]
    at = _padded(at, len(at) + 1, len(x) * m - 1).index_select(0, place)
    return _padded(values, len(values) + 1, 0).index_select(0, place), at // m, at % m


def _candidates(
    x: Tensor, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of the product above a guessed threshold, of each block as many as there
    is room for: values, 0 where there is none, and positions row * m + latent,
    ascending; and whether the n largest above 0 are among them.
    """
    guess, m = threshold_on_device(x, weight, bias, n), weight.shape[1]
    values, at = [], []
    found = torch.zeros((), dtype=torch.int64, device=x.device)
    full = torch.zeros((), dtype=torch.bool, device=x.device)
    for first, pre in blocks(x, weight, bias):
        flat = pre.view(-1)
        room = min(len(flat), math.ceil(ROOM * n * len(pre) / len(x)))
        above_it = ~(flat <= guess)
        place = torch.nonzero_static(above_it, size=room, fill_value=-1)[:, 0]
        value = flat.index_select(0, place.clamp_min(0)).to(x.dtype)
        values.append(value.masked_fill(place < 0, 0))
        at.append(place + first * m)
        count = above_it.sum()
        found += count
        full |= count > room
    return torch.cat(values), torch.cat(at), ~full & ((found >= n) | (guess == 0))


def _padded(tensor: Tensor, size: int, value: int) -> Tensor:
    """A tensor [n] with more of a value behind it, where it is shorter than `size`."""
    return torch.cat([tensor, tensor.new_full((max(0, size - len(tensor)),), value)])


def first_threshold(x: Tensor, weight: Tensor, bias: Tensor, n: int) -> float:
    """`threshold_on_device`, as a number; 0 where that is none."""
    return max(0.0, float(threshold_on_device(x, weight, bias, n)))


def threshold_on_device(x: Tensor, weight: Tensor, bias: Tensor, n: int) -> Tensor:
    """A number not below 0 that more than n entries of the product exceed, as far as a
    sample of its rows can tell.
    """
    sample = x[:: math.ceil(len(x) / _SAMPLE_ROWS)]
    pre = torch.cat(
        [part.flatten().clone() for _, part in blocks(sample, weight, bias)]
    )
    wanted = math.ceil(_MARGIN * n * len(sample) / len(x))
    return (
        pre.topk(wanted, sorted=False).values.min().clamp_min(0)
        if wanted < len(pre)
        else pre.new_zeros(())
    )


def above(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """The entries of the product above a threshold: values in x's dtype, positions row
    * m + latent, ascending.
    """
    values, at = [], []
    for first, pre in blocks(x, weight, bias):
        flat = pre.view(-1)
        found = (~(flat <= threshold)).nonzero()[:, 0]
        values.append(flat[found].to(x.dtype))
        at.append(found + first * weight.shape[1])
    if not values:
        return x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
    return torch.cat(values), torch.cat(at)
