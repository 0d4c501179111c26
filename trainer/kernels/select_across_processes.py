"""Selects the largest entries of a matrix whose parts are in several processes.

The parts are rows (of a batch) or columns (of a dictionary). The n-th largest of all is
found bit by bit: a positive float32's bits, read as an integer, are in the order of the
numbers, so that three histograms of a few bits each, summed over processes, give it
exactly.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from trainer.kernels.topk_select import above, first_threshold

_DIGITS = ((21, 10), (10, 11), (0, 10))  # (shift, width): the 31 bits below the sign
_NAN = 0x7FFFFFFF  # above the bits of infinity: NaN counts as the largest


class Peers(Protocol):
    """Exchanges between processes; `trainer.distributed.processes.World` has them."""

    rank: int

    def sum_(self, tensor: Tensor) -> Tensor: ...

    def min_(self, tensor: Tensor) -> Tensor: ...

    def total(self, n: int) -> int: ...

    def least(self, value: float) -> float: ...

    def gather(self, tensor: Tensor) -> Tensor: ...


@torch.no_grad()
def batch_top_k_of_parts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    n: int,
    n_here: int,
    peers: Peers,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is here of the n largest of x W + b, which processes have parts of.

    Of equal ones those of the first process are taken.

    Args:
        x: [B, d], the rows here.
        weight: [d, m], of the latents here.
        bias: [m].
        n: How many of all.
        n_here: About how many of them are here, which only a guess depends on.
        peers: The processes.

    Returns:
        Values, rows and latents, [<= n] each.
    """
    # a process without rows has no say in the smallest guess
    guess = math.inf
    if n_here and len(x):
        guess = first_threshold(x, weight, bias, n_here)
    guess = peers.least(guess)
    values, position = above(x, weight, bias, guess)
    n_found = peers.total(len(position))
    if n_found < n and guess > 0:
        values, position = above(x, weight, bias, 0.0)
        n_found = peers.total(len(position))
    if n_found > n:
        keep = largest_of_all(values, n, peers)
        values = values[keep]
        position = position[keep]
    n_latents = weight.shape[1]
    return values, position // n_latents, position % n_latents


def largest_of_all(values: Tensor, n: int, peers: Peers) -> Tensor:
    """Return which of this process's values are among the n largest of all processes'.

    Args:
        values: [.], above 0 or NaN, taken as float32.
        n: How many of all.
        peers: The processes.

    Returns:
        bool [.].
    """
    bits = values.float().view(torch.int32).to(torch.int64)
    bits = bits.masked_fill(values.isnan(), _NAN)
    # `prefix`: what the n-th largest begins with. `left`: how many of the n largest
    # begin so. In decimal digits, for the third largest of 97, 93, 91 and 42: three
    # values begin with 9, so it does; by the second digit 7 and 3 come before it, and
    # it is 91.
    prefix = 0
    left = n
    for shift, width in _DIGITS:
        n_digits = 1 << width
        begins_so = bits >> (shift + width) == prefix
        same_prefix = bits[begins_so]
        digits = (same_prefix >> shift) & (n_digits - 1)
        counts = peers.sum_(torch.bincount(digits, minlength=n_digits))
        from_largest = counts.flip(0).cumsum(0)
        # digits that lie wholly above the n-th largest
        n_above = int((from_largest < left).sum())
        if n_above:
            left -= int(from_largest[n_above - 1])
        prefix = prefix << width | (n_digits - 1 - n_above)
    # All 31 bits are known: `prefix` is the n-th largest, and `left` of its equals are
    # among the n. The first processes take theirs first: with 2 left and 1, 3 and 0
    # equals in three processes, the first takes its one and the second its first one.
    same = bits == prefix
    counts_of_all = peers.gather(same.sum())
    n_before = int(counts_of_all[: peers.rank].sum())
    is_first = same.cumsum(0) <= left - n_before
    return (bits > prefix) | (same & is_first)
