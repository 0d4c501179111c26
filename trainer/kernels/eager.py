"""The two sparse products in plain torch, which the Triton kernels are held to.

They are fast on a CPU. Both are written with torch's embedding bag, which adds up rows
of a table that an index names: the fastest such sum that torch has on a CPU, with no
[n, d] tensor in between. Nothing here is atomic on a CPU: results are the same bits at
every call with the same number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def gather_sum(
    table: Tensor,
    index: Tensor,
    start: Tensor,
    weight: Tensor,
    *,
    uneven: bool = False,  # noqa: ARG001 (a kernel's sizes go by it)
) -> Tensor:
    """Return weighted sums of rows of a table, one for each segment of an index.

    With segment s the entries j from start[s] up to start[s + 1] (the last segment: up
    to the end),

        out[s] = sum over j of segment s of weight[j] * table[index[j]]

    It is the decoder: the table is W_dec, the segments are rows, index[j] the latents
    that fired in them and weight[j] their values.

    Args:
        table: [n, d].
        index: int64 [nnz], rows of the table.
        start: int64 [S], ascending. A segment may be empty; its sum is 0.
        weight: [nnz], cast to the table's dtype.
        uneven: Whether some segments are much longer than others, as those of latents
            are. It changes no result.

    Returns:
        The sums [S, d], in the table's dtype.
    """
    if not len(index):
        return table.new_zeros(len(start), table.shape[1])
    summed: Tensor = embedding_bag(
        index, table, start, per_sample_weights=weight.to(table.dtype), mode="sum"
    )
    return summed


def row_dots(
    left: Tensor,
    left_index: Tensor,
    right: Tensor,
    right_index: Tensor,
    start: Tensor,
) -> Tensor:
    """Return dot products between pairs of rows of two matrices.

        out[j] = left[left_index[j]] . right[right_index[j]]

    It is the gradient of `gather_sum` at its weights. torch has it as the backward of
    an embedding bag, which makes no copies [nnz, d] of the rows.

    Args:
        left: [S, d].
        left_index: int64 [nnz], ascending.
        right: [n, d].
        right_index: int64 [nnz].
        start: int64 [S], where each row of `left` begins in `left_index`.

    Returns:
        The dot products [nnz].
    """
    if not len(left_index):
        return left.new_zeros(0)
    mode_sum = 0  # as torch numbers the modes of an embedding bag
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left.contiguous(), right, right_index, start, left_index, mode_sum
    )
    return dots
