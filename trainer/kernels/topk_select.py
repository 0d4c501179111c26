"""Selects the largest pre-activations, exactly, without keeping all of them.

The dense product [B, m] of a batch with the encoder is never whole in memory. A block
of rows is multiplied, searched while it is still in cache, and overwritten by the next
one. The search never sorts whole rows: the k largest of a row lie in the k groups whose
largest members are largest, so only those groups are looked at.

On a GPU nothing here asks for a number that the device has to compute first, with one
exception: `batch_top_k_on_device` asks once whether its guess held.

A *position* below is the index of an entry in the flattened product: row * m + latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CPU_BLOCK_BYTES = 12 << 20  # fits into a share of the last-level cache
GPU_BLOCK_BYTES = 1 << 30  # large, since large products keep a GPU busy
_MEMBERS = 16  # latents of a group: near sqrt(m / k) for the usual m and k
_SAMPLE_ROWS = 64  # rows from which a threshold is guessed
_MARGIN = 2  # the guessed threshold leaves so many times the wanted entries
ROOM = 8
"""Candidates that a device keeps for each entry of the result. About `_MARGIN` of them
are expected; the rest is room for blocks of rows that have more than others.
"""


def largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row; faster than `torch.topk` for k far below m.

    With c groups, latent i is in group i mod c. A group's score is its largest member.
    If one of the k largest latents lay outside the k groups of highest score, each of
    those groups would hold a larger one, which makes k + 1 of them. So the k largest
    are among the members of these k groups.

    Args:
        pre: [B, m].
        k: How many of each row.

    Returns:
        Their values [B, k], in no order, and latents, int64 [B, k]. The values are
        those of `torch.topk`; among equal ones the latents may be others. NaN counts as
        the largest.

    Examples:
        m = 12 with c = 3 groups (of 4 members here, of 16 in the code): group 1 has the
        latents 1, 4, 7 and 10. In `pre.view(B, 4, 3)` it is the column [:, :, 1]: its
        score is the maximum over axis 1, and its members are 1 + (0, 3, 6, 9).
    """
    n_rows, m = pre.shape
    n_groups = m // _MEMBERS
    divides = m % _MEMBERS == 0
    # Only where most groups can be left out is this faster than the plain search.
    has_many_groups = 4 * k <= n_groups
    if not (divides and has_many_groups and pre.is_contiguous()):
        values, latents = pre.topk(k, dim=-1, sorted=False)
        return values, latents
    scores = pre.view(n_rows, _MEMBERS, n_groups).amax(dim=1)
    groups = scores.topk(k, dim=-1, sorted=False).indices
    offsets = torch.arange(0, m, n_groups, device=pre.device)
    members = offsets[:, None] + groups[:, None, :]
    candidates = members.view(n_rows, _MEMBERS * k)
    candidate_values = pre.gather(1, candidates)
    values, selected = candidate_values.topk(k, dim=-1, sorted=False)
    return values, candidates.gather(1, selected)


def blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield x @ weight + bias in blocks of rows: (first row, product [b, m]).

    All blocks share one buffer: each is overwritten by the next.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m]. Under autocast the product is computed in autocast's dtype, else in
            that of x.
    """
    device = x.device.type
    dtype = x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    x = x.to(dtype)
    weight = weight.to(dtype)
    bias = bias.to(dtype)
    m = weight.shape[1]
    block_bytes = CPU_BLOCK_BYTES if device == "cpu" else GPU_BLOCK_BYTES
    block_rows = max(1, block_bytes // (m * dtype.itemsize))
    buffer = x.new_empty(min(block_rows, len(x)), m)
    for first in range(0, len(x), block_rows):
        rows = x[first : first + block_rows]
        # the last block may have fewer rows than the buffer
        out = buffer[: len(rows)]
        yield first, torch.addmm(bias, rows, weight, out=out)


@torch.no_grad()
def top_k_of_product(
    x: Tensor, weight: Tensor, bias: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row of x @ weight + bias.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m].
        k: How many of each row.

    Returns:
        Values [B, k], in the dtype of x, and latents, int64 [B, k], as `largest` does.
    """
    values = x.new_empty(len(x), k)
    latents = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for first, pre in blocks(x, weight, bias):
        block = slice(first, first + len(pre))
        values[block], latents[block] = largest(pre, k)
    return values, latents


@torch.no_grad()
def batch_top_k_of_product(
    x: Tensor, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the n largest entries of the whole of x @ weight + bias.

    Where fewer are above 0, it is those. A threshold guessed from some of the rows
    bounds what has to be sorted. It is low enough nearly always; where it proves too
    high, the product is searched once more with the threshold 0. The result does not
    depend on the guess.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m].
        n: How many of the whole batch.

    Returns:
        Values [at most n] in the dtype of x, rows and latents (int64), in row order. Of
        equal entries the first ones are taken. NaN counts as the largest, so that it is
        not hidden.
    """
    guess = first_threshold(x, weight, bias, n)
    values, positions = above(x, weight, bias, guess)
    if len(positions) < n and guess > 0:
        values, positions = above(x, weight, bias, 0.0)
    if len(positions) > n:
        smallest = values.topk(n).values[-1]
        # "not at most" and not "above": that keeps NaN
        keep = _first_n(~(values <= smallest), values == smallest, n)
        values = values[keep]
        positions = positions[keep]
    m = weight.shape[1]
    return values, positions // m, positions % m


@torch.no_grad()
def batch_top_k_on_device(
    x: Tensor, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `batch_top_k_of_product` does, but always n entries.

    Where fewer are above 0, others with the value 0 fill up the rest. They are spread
    over rows and latents: in one row or latent, a sum over them would take as long as
    all others together.

    Sizes never depend on values, so that the host runs ahead of the device. It waits
    once, to hear whether the guessed threshold left at least n entries and no more than
    there was room for, and whether n are above 0. Where the threshold did not, which is
    rare, the slower search answers, with the same result.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m].
        n: How many of the whole batch: at most B * m.

    Returns:
        Values [n] in the dtype of x, rows and latents (int64 [n]), in row order.
    """
    m = weight.shape[1]
    values, positions, complete, enough = _candidates(x, weight, bias, n)
    answer = int(torch.where(complete, 2 - enough.int(), 0))  # the one wait
    is_enough = answer == 1
    if answer == 0:
        values, rows, latents = batch_top_k_of_product(x, weight, bias, n)
        positions = rows * m + latents
        is_enough = len(values) == n
    # Candidates of value 0 are only there to fill a block's room.
    is_entry = values != 0
    smallest = _padded(values, n, 0).topk(n).values[-1]
    # "not at most" and not "above": that keeps NaN
    is_above = is_entry & ~(values <= smallest)
    is_smallest = is_entry & (values == smallest)
    keep = _first_n(is_above, is_smallest, n)
    # One candidate more, the last, is what fills up the result to n entries.
    filler = len(values)
    kept = torch.nonzero_static(keep, size=n, fill_value=filler)[:, 0]
    positions = _padded(positions, filler + 1, 0)
    positions = positions.index_select(0, kept)
    values = _padded(values, filler + 1, 0)
    values = values.index_select(0, kept)
    if not is_enough:
        spread = torch.arange(n, device=x.device) * (len(x) * m) // n
        positions = torch.where(kept == filler, spread, positions)
        positions, order = positions.sort(stable=True)
        values = values.index_select(0, order)
    return values, positions // m, positions % m


def _first_n(above_smallest: Tensor, is_smallest: Tensor, n: int) -> Tensor:
    """Tell which entries are the n largest, bool [c], of equal ones the first.

    With the values 5, 3, 4, 3, 3 and n = 3 the smallest one that is kept is 3. Two are
    above it, so one of the three equal ones is kept: the first.
    """
    n_equal = n - above_smallest.sum()
    return above_smallest | (is_smallest & (is_smallest.cumsum(0) <= n_equal))


def _candidates(
    x: Tensor, weight: Tensor, bias: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return entries of the product above a guessed threshold.

    Of each block of rows there are as many as there is room for.

    Returns:
        Values [c], 0 where a block's room is not used up; positions, int64 [c],
        ascending; whether the n largest entries above 0 are all among them, a bool [];
        and whether they are n, a bool [].
    """
    guess = threshold_on_device(x, weight, bias, n)
    m = weight.shape[1]
    values = []
    positions = []
    n_found = torch.zeros((), dtype=torch.int64, device=x.device)
    too_many = torch.zeros((), dtype=torch.bool, device=x.device)
    for first, pre in blocks(x, weight, bias):
        flat = pre.view(-1)
        # The block's share of ROOM * n candidates, by its share of the rows.
        share = math.ceil(ROOM * n * len(pre) / len(x))
        room = min(len(flat), share)
        above_guess = ~(flat <= guess)
        indices = torch.nonzero_static(above_guess, size=room, fill_value=-1)[:, 0]
        # An index of -1 fills up the room: it takes any value, which is then made 0.
        block_values = flat.index_select(0, indices.clamp_min(0)).to(x.dtype)
        values.append(block_values.masked_fill(indices < 0, 0))
        positions.append(indices + first * m)
        count = above_guess.sum()
        n_found += count
        too_many |= count > room
    enough = n_found >= n
    complete = ~too_many & (enough | (guess == 0))
    return torch.cat(values), torch.cat(positions), complete, enough


def _padded(tensor: Tensor, size: int, value: int) -> Tensor:
    """Return [n] with copies of a value added at the end, up to `size` elements."""
    missing = max(0, size - len(tensor))
    return torch.cat([tensor, tensor.new_full((missing,), value)])


def first_threshold(x: Tensor, weight: Tensor, bias: Tensor, n: int) -> float:
    """Return `threshold_on_device` as a number; 0 where it is NaN.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m].
        n: How many entries are wanted of the whole batch.
    """
    guess = float(threshold_on_device(x, weight, bias, n))
    # In this order: max(0.0, NaN) is 0.0, and max(NaN, 0.0) would be NaN.
    return max(0.0, guess)


def threshold_on_device(x: Tensor, weight: Tensor, bias: Tensor, n: int) -> Tensor:
    """Guess a number from 0 up that more than n entries of x @ weight + bias exceed.

    A sample of the rows is searched for the share of entries that is wanted, times
    `_MARGIN`: of B = 4096 rows and n = 131,072, the sample has 64 rows, its share is
    2,048 entries, and the guess is the 4,096th largest of the sample.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m].
        n: How many entries are wanted of the whole batch.

    Returns:
        The guess, [], in the dtype of the product.
    """
    sample = x[:: math.ceil(len(x) / _SAMPLE_ROWS)]
    # A clone, for the next block overwrites this one.
    parts = [pre.flatten().clone() for _, pre in blocks(sample, weight, bias)]
    entries = torch.cat(parts)
    wanted = math.ceil(_MARGIN * n * len(sample) / len(x))
    if wanted >= len(entries):
        return entries.new_zeros(())
    largest_entries = entries.topk(wanted, sorted=False).values
    # Entries below 0 are never selected.
    return largest_entries.min().clamp_min(0)


def above(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the entries of x @ weight + bias that are above a threshold, or NaN.

    Args:
        x: [B, d].
        weight: [d, m].
        bias: [m].
        threshold: What they are above.

    Returns:
        Values [c] in the dtype of x, and positions, int64 [c], ascending.
    """
    m = weight.shape[1]
    values = []
    positions = []
    for first, pre in blocks(x, weight, bias):
        flat = pre.view(-1)
        # "not at most" and not "above": that keeps NaN
        indices = (~(flat <= threshold)).nonzero()[:, 0]
        values.append(flat[indices].to(x.dtype))
        positions.append(indices + first * m)
    if not values:
        no_positions = torch.zeros(0, dtype=torch.int64, device=x.device)
        return x.new_zeros(0), no_positions
    return torch.cat(values), torch.cat(positions)
