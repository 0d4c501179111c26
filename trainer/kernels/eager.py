"""The two sparse products in plain torch: fast on a CPU, and what the Triton kernels
are held to.

Nothing here is atomic on a CPU: results are the same bits at every call with the same
number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def gather_sum(table: Tensor, index: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """out[s] = sum of weight[j] * table[index[j]] over the j of segment s: [S, d].

    table: [n, d]; index: int64 [nnz]; weight: [nnz]; start: int64 [S], ascending,
    segment s ends where s + 1 begins.
    """
    if not len(index):
        return table.new_zeros(len(start), table.shape[1])
    summed: Tensor = embedding_bag(
        index, table, start, per_sample_weights=weight.to(table.dtype), mode="sum"
    )
    return summed


def row_dots(
    left: Tensor, left_index: Tensor, right: Tensor, right_index: Tensor, start: Tensor
) -> Tensor:
    """out[j] = left[left_index[j]] . right[right_index[j]]: [nnz].

    left_index: int64 [nnz], ascending; start: int64 [len(left)], where each row of
    `left` begins in it.
    """
    if not len(left_index):
        return left.new_zeros(0)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left.contiguous(), right, right_index, start, left_index, 0
    )
    return dots
