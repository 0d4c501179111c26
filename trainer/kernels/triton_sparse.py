"""The two sparse products as Triton kernels for CUDA.

`eager` is their twin, and says what they compute and with which arguments.

Neither uses atomic additions: a sum is made by one program, in order, so that results
repeat bit by bit. Sums are float32, or float64 where the table is. `TRITON_INTERPRET=1`
runs the kernels on a CPU, slowly, for tests (`make test-kernels`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class _Tile(NamedTuple):
    """The part of a sum that a program holds at once; sizes are powers of 2."""

    members: int
    """Nonzeros."""
    columns: int
    """Columns, at most: a narrower table has tiles as wide as itself."""
    warps: int
    """Groups of 32 threads."""


# The fastest of 40 on an H100, over tables of 64 to 2,304 columns and 1,024 to 65,536
# latents, 32 nonzeros in each of 4,096 rows.
_EVEN = _Tile(32, 256, 2)
# Of a few long segments, many nonzeros at once and many programs for the columns.
_UNEVEN = _Tile(64, 64, 2)
_UNEVEN_AND_SHORT = _Tile(16, 512, 2)
_LONG = 4  # nonzeros in a segment, on average
_PAIRS = _Tile(8, 128, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _gather_sum_kernel(  # type: ignore[no-untyped-def]
    table,
    index,
    start,
    weight,
    out,
    n_segments,
    nnz,
    d,
    SUM_DTYPE: tl.constexpr,
    MEMBERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[s] = sum over the entries j of segment s of weight[j] * table[index[j]].

    Program (s, c) sums COLUMNS columns of segment s, from column c * COLUMNS on, in
    steps of MEMBERS entries: it loads a tile [MEMBERS, COLUMNS] of the table, weighs
    its rows and adds them up. Programs share nothing, so the order of each sum is
    always the same.
    """
    # int64, for segment * d may be above 2^31
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < d
    total = tl.zeros([COLUMNS], dtype=SUM_DTYPE)
    # the last segment goes up to the end
    is_before_last = segment + 1 < n_segments
    stop = tl.load(start + segment + 1, mask=is_before_last, other=nnz)
    for first in range(tl.load(start + segment), stop, MEMBERS):
        member = first + tl.arange(0, MEMBERS)
        in_segment = member < stop
        row = tl.load(index + member, mask=in_segment, other=0)
        factor = tl.load(weight + member, mask=in_segment, other=0).to(SUM_DTYPE)
        tile = tl.load(
            table + row[:, None] * d + columns[None, :],
            mask=in_segment[:, None] & in_row[None, :],
            other=0,
        )
        total += tl.sum(tile.to(SUM_DTYPE) * factor[:, None], axis=0)
    tl.store(out + segment * d + columns, total.to(out.dtype.element_ty), mask=in_row)


@triton.jit  # type: ignore[untyped-decorator]
def _row_dots_kernel(  # type: ignore[no-untyped-def]
    left,
    left_index,
    right,
    right_index,
    out,
    nnz,
    d,
    SUM_DTYPE: tl.constexpr,
    MEMBERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[j] = left[left_index[j]] . right[right_index[j]].

    Program p computes MEMBERS of the dot products, from p * MEMBERS on, in steps of
    COLUMNS columns: it loads tiles [MEMBERS, COLUMNS] of both matrices and adds up
    their products along the columns.
    """
    member = tl.program_id(0).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)
    is_member = member < nnz
    left_row = tl.load(left_index + member, mask=is_member, other=0)
    right_row = tl.load(right_index + member, mask=is_member, other=0)
    total = tl.zeros([MEMBERS], dtype=SUM_DTYPE)
    for first in range(0, d, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = is_member[:, None] & (columns < d)[None, :]
        left_at = left + left_row[:, None] * d + columns[None, :]
        right_at = right + right_row[:, None] * d + columns[None, :]
        left_tile = tl.load(left_at, mask=mask, other=0).to(SUM_DTYPE)
        right_tile = tl.load(right_at, mask=mask, other=0).to(SUM_DTYPE)
        total += tl.sum(left_tile * right_tile, axis=1)
    tl.store(out + member, total.to(out.dtype.element_ty), mask=is_member)


def gather_sum(
    table: Tensor,
    index: Tensor,
    start: Tensor,
    weight: Tensor,
    *,
    uneven: bool = False,
) -> Tensor:
    """Return weighted sums of rows of a table, [S, d], as `eager.gather_sum` does."""
    n_segments = len(start)
    d = table.shape[1]
    out = table.new_empty(n_segments, d)
    if not out.numel():
        return out
    tile = _EVEN
    if uneven:
        is_long = len(index) >= _LONG * n_segments
        tile = _UNEVEN if is_long else _UNEVEN_AND_SHORT
    columns = min(tile.columns, triton.next_power_of_2(d))
    grid = (n_segments, triton.cdiv(d, columns))
    _gather_sum_kernel[grid](
        table.contiguous(),
        index.contiguous(),
        start.contiguous(),
        weight.contiguous(),
        out,
        n_segments,
        len(index),
        d,
        SUM_DTYPE=_sum_dtype(table),
        MEMBERS=tile.members,
        COLUMNS=columns,
        num_warps=tile.warps,
    )
    return out


def row_dots(
    left: Tensor,
    left_index: Tensor,
    right: Tensor,
    right_index: Tensor,
    start: Tensor,  # noqa: ARG001 (eager's algorithm needs it)
) -> Tensor:
    """Return dot products of pairs of rows, [nnz], as `eager.row_dots` does."""
    nnz = len(left_index)
    d = left.shape[1]
    out = left.new_empty(nnz)
    if not nnz:
        return out
    tile = _PAIRS
    grid = (triton.cdiv(nnz, tile.members),)
    _row_dots_kernel[grid](
        left.contiguous(),
        left_index.contiguous(),
        right.contiguous(),
        right_index.contiguous(),
        out,
        nnz,
        d,
        SUM_DTYPE=_sum_dtype(left),
        MEMBERS=tile.members,
        COLUMNS=min(tile.columns, triton.next_power_of_2(d)),
        num_warps=tile.warps,
    )
    return out


def _sum_dtype(table: Tensor) -> Any:
    """Return the dtype of a kernel's sums."""
    return tl.float64 if table.dtype == torch.float64 else tl.float32
