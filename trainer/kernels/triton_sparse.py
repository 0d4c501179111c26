"""The two sparse products as Triton kernels for CUDA; `eager` is their twin and says
what they compute.

Neither uses atomics: a segment is summed by one program, in order, so results repeat
bit by bit. Sums are float32, or float64 where the table is. `TRITON_INTERPRET=1` runs
them on a CPU, slowly, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MEMBERS = 16  # nonzeros that a program holds at once
_MAX_COLUMNS = 256


@triton.jit  # type: ignore[untyped-decorator]
def _gather_sum_kernel(  # type: ignore[no-untyped-def]
    table,
    index,
    start,
    end,
    weight,
    out,
    d,
    WIDE: tl.constexpr,
    MEMBERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program (s, c): columns c * COLUMNS ... of segment s."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    total = tl.zeros([COLUMNS], dtype=WIDE)
    last = tl.load(end + segment)
    for first in range(tl.load(start + segment), last, MEMBERS):
        member = first + tl.arange(0, MEMBERS)
        valid = member < last
        row = tl.load(index + member, mask=valid, other=0)
        factor = tl.load(weight + member, mask=valid, other=0).to(WIDE)
        tile = tl.load(
            table + row[:, None] * d + columns[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0,
        )
        total += tl.sum(tile.to(WIDE) * factor[:, None], axis=0)
    tl.store(out + segment * d + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _row_dots_kernel(  # type: ignore[no-untyped-def]
    left,
    left_index,
    right,
    right_index,
    out,
    nnz,
    d,
    WIDE: tl.constexpr,
    MEMBERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program p: nonzeros p * MEMBERS ... ."""
    member = tl.program_id(0).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)
    valid = member < nnz
    a = tl.load(left_index + member, mask=valid, other=0)
    b = tl.load(right_index + member, mask=valid, other=0)
    total = tl.zeros([MEMBERS], dtype=WIDE)
    for first in range(0, d, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (columns < d)[None, :]
        x = tl.load(left + a[:, None] * d + columns[None, :], mask=mask, other=0).to(
            WIDE
        )
        y = tl.load(right + b[:, None] * d + columns[None, :], mask=mask, other=0).to(
            WIDE
        )
        total += tl.sum(x * y, axis=1)
    tl.store(out + member, total.to(out.dtype.element_ty), mask=valid)


def gather_sum(table: Tensor, index: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """As `eager.gather_sum`."""
    table, index, weight = table.contiguous(), index.contiguous(), weight.contiguous()
    d = table.shape[1]
    out = table.new_empty(len(start), d)
    end = torch.cat([start[1:], start.new_full((1,), len(index))])
    sizes = _sizes(table)
    if out.numel():
        grid = (len(start), triton.cdiv(d, sizes["COLUMNS"]))
        _gather_sum_kernel[grid](
            table, index, start.contiguous(), end, weight, out, d, **sizes
        )
    return out


def row_dots(
    left: Tensor,
    left_index: Tensor,
    right: Tensor,
    right_index: Tensor,
    start: Tensor,  # noqa: ARG001
) -> Tensor:
    """As `eager.row_dots`."""
    left, right = left.contiguous(), right.contiguous()
    left_index, right_index = left_index.contiguous(), right_index.contiguous()
    nnz, d = len(left_index), left.shape[1]
    out = left.new_empty(nnz)
    if nnz:
        grid = (triton.cdiv(nnz, _MEMBERS),)
        _row_dots_kernel[grid](
            left, left_index, right, right_index, out, nnz, d, **_sizes(left)
        )
    return out


def _sizes(table: Tensor) -> dict[str, Any]:
    columns = min(_MAX_COLUMNS, triton.next_power_of_2(table.shape[1]))
    return {
        "WIDE": tl.float64 if table.dtype == torch.float64 else tl.float32,
        "MEMBERS": _MEMBERS,
        "COLUMNS": columns,
    }
