"""Selection over a matrix whose parts are in several processes: their rows (of a batch)
or columns (of a dictionary).

The n-th largest of all is found bit by bit: a positive float32's bits, read as an
integer, are in the order of the numbers, so that three histograms of a few bits each,
summed over processes, give it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

from trainer.kernels.topk_select import above, first_threshold

_DIGITS = ((21, 10), (10, 11), (0, 10))  # (shift, width): the 31 bits below the sign
_NAN = 0x7FFFFFFF


class Peers(Protocol):
    """What is asked of the processes; `trainer.distributed.processes.World` is one."""

    rank: int

    def sum_(self, tensor: Tensor) -> Tensor: ...

    def min_(self, tensor: Tensor) -> Tensor: ...

    def total(self, n: int) -> int: ...

    def least(self, value: float) -> float: ...

    def gather(self, tensor: Tensor) -> Tensor: ...


_peers: ContextVar[Peers | None] = ContextVar("peers", default=None)


def peers() -> Peers | None:
    """The processes that have the other rows of this batch; None for a batch of one
    process.
    """
    return _peers.get()


@contextmanager
def rows_among(others: Peers) -> Iterator[None]:
    """Inside, a batch is that of all processes: selections go over the rows of all."""
    token = _peers.set(others)
    try:
        yield
    finally:
        _peers.reset(token)


@torch.no_grad()
def batch_top_k_of_parts(
    x: Tensor, weight: Tensor, bias: Tensor, n: int, own: int, world: Peers
) -> tuple[Tensor, Tensor, Tensor]:
    """As `batch_top_k_of_product`, of a product whose parts the processes have; returns
    those of this process's part.

    n: how many of all; own: about how many of them are here, which only a guess depends
    on. Of equal ones those of the first process.
    """
    guess = world.least(
        first_threshold(x, weight, bias, own) if own and len(x) else math.inf
    )
    values, at = above(x, weight, bias, guess)
    found = world.total(len(at))
    if found < n and guess > 0:
        values, at = above(x, weight, bias, 0.0)
        found = world.total(len(at))
    if found > n:
        keep = largest_of_all(values, n, world)
        values, at = values[keep], at[keep]
    m = weight.shape[1]
    return values, at // m, at % m


def largest_of_all(values: Tensor, n: int, world: Peers) -> Tensor:
    """bool: which of this process's values, float32 above 0 or NaN, are among the n
    largest of all processes'.
    """
    bits = (
        values.float()
        .view(torch.int32)
        .to(torch.int64)
        .masked_fill(values.isnan(), _NAN)
    )
    prefix, left = 0, n
    for shift, width in _DIGITS:
        here = bits[bits >> (shift + width) == prefix]
        counts = world.sum_(
            torch.bincount((here >> shift) & ((1 << width) - 1), minlength=1 << width)
        )
        upwards = counts.flip(0).cumsum(0)
        # digits that lie wholly above the n-th largest
        place = int((upwards < left).sum())
        left -= int(upwards[place - 1]) if place else 0
        prefix = prefix << width | ((1 << width) - 1 - place)
    same = bits == prefix
    before = int(world.gather(same.sum())[: world.rank].sum())
    return (bits > prefix) | (same & (same.cumsum(0) <= left - before))
