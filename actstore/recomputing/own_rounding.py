"""Measures how far a model's own rounding moves its values.

The same forward is run in a wider precision. What differs is the rounding of the
narrower one, which is about as large on any processor. Most models stay far below what
`allowances.of_forward` takes as usual, so this is asked only where rows seem wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from actstore.recomputing import allowances
from actstore.recomputing.allowances import Floats

# How far two narrow forwards may be apart, as so many times how far one of them is from
# the wide one: twice if errors are equal, and twice that for rows of bad luck.
_MARGIN = 4
_HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def in_wider_precision(module: nn.Module) -> Iterator[None]:
    """Let a model compute in a wider precision for the length of a `with` block.

    Halves become float32; a model without any becomes float64. Its tensors are cast one
    by one and back, both without loss.
    """
    tensors = [*module.parameters(), *module.buffers()]
    halves = [one for one in tensors if one.dtype in _HALVES]
    singles = [one for one in tensors if one.dtype == torch.float32]
    wide = torch.float32 if halves else torch.float64
    before = [(one, one.dtype) for one in halves or singles]
    try:
        for tensor, _ in before:
            tensor.data = tensor.data.to(wide)
        yield
    finally:
        for tensor, dtype in before:
            tensor.data = tensor.data.to(dtype)


def widening(narrow: Floats, wide: Floats, dtype: str) -> float:
    """Return how many times what is usual a site's values may move; 1 or more.

    Args:
        narrow: Rows as the model computes them, float64 [n, d].
        wide: The same rows in a wider precision, float64 [n, d].
        dtype: The coarsest dtype that the model computes in.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(narrow - wide)
        of_values = distances / allowances.of_forward(narrow, dtype)
        usual = allowances.of_rows(narrow, dtype, np.zeros_like(narrow))
        of_rows = np.linalg.norm(distances, axis=1) / usual
    shares = np.append(of_values.ravel(), of_rows)
    finite = shares[np.isfinite(shares)]
    return max(1.0, _MARGIN * float(finite.max(initial=0)))
