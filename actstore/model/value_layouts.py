"""How a module's values lie: [b, t, ...], a row per token [b * t, ...], or time first
[t, b, ...].

A probe whose b and t are no sizes of the model tells which; a harvest's batches, where
4 sequences of 4 tokens are both [b, t] and [t, b], are then read in that way.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["sequences", "rows", "time first"]


def layout_of(x: Tensor, shape: torch.Size) -> Layout | None:
    """The layout of a probe's values for tokens of shape [b, t]; None: they are not one
    vector per token.
    """
    b, t = shape
    if not x.is_floating_point():
        return None  # ids, masks
    if x.ndim >= 3 and x.shape[:2] == (b, t):
        return "sequences"
    if x.ndim >= 2 and x.shape[0] == b * t:
        return "rows"
    return "time first" if x.ndim >= 3 and x.shape[:2] == (t, b) else None


def arranged(x: Tensor, layout: Layout, shape: torch.Size) -> Tensor | None:
    """The values as [b, t, d]; None where they do not lie in this layout."""
    b, t = shape
    if layout == "rows":
        return x.reshape(b, t, -1) if x.shape[0] == b * t else None
    if layout == "time first":
        return x.transpose(0, 1).flatten(2) if x.shape[:2] == (t, b) else None
    return x.flatten(2) if x.ndim >= 3 and x.shape[:2] == (b, t) else None
