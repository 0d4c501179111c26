"""Tell how a module's values lie in memory, and bring them to [b, t, d].

Most modules give [b, t, ...]; some give a row for each token, [b * t, ...], or time
first, [t, b, ...]. A probe tells which, with b and t that are no sizes of the model.
Batches of a harvest are then read in that layout: they cannot tell by themselves, since
4 sequences of 4 tokens are [4, 4, d] in two of the layouts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# [b, t, ...]; [b * t, ...]; [t, b, ...]
ValueLayout = Literal["sequences", "rows", "time first"]


def layout_of(x: Tensor, shape: torch.Size) -> ValueLayout | None:
    """Return the layout of a probe's values; None where they are no vectors of tokens.

    With tokens of shape [2, 11], values [2, 11, 64] are "sequences", [22, 64] are
    "rows", [11, 2, 64] are "time first", and [2, 64] (one vector per sequence) are
    nothing that can be stored.

    Args:
        x: The values.
        shape: The shape of the probe's tokens, [b, t].
    """
    b, t = shape
    if not x.is_floating_point():
        # Token ids and masks pass through modules too.
        return None
    if x.ndim >= 3 and x.shape[:2] == (b, t):
        return "sequences"
    if x.ndim >= 2 and x.shape[0] == b * t:
        return "rows"
    if x.ndim >= 3 and x.shape[:2] == (t, b):
        return "time first"
    return None


def arranged(x: Tensor, layout: ValueLayout, shape: torch.Size) -> Tensor | None:
    """Return values as [b, t, d]; None where they do not lie in this layout.

    All dimensions after those of the tokens are flattened: of 2 sequences of 11 tokens,
    "rows" [22, 4, 16] (4 heads of 16) become [2, 11, 64].

    Args:
        x: The values, in `layout`.
        layout: As a probe told it.
        shape: The shape of the tokens, [b, t].
    """
    b, t = shape
    if layout == "rows":
        if x.shape[0] != b * t:
            return None
        return x.reshape(b, t, -1)
    if layout == "time first":
        if x.shape[:2] != (t, b):
            return None
        return x.transpose(0, 1).flatten(2)
    if x.ndim < 3 or x.shape[:2] != (b, t):
        return None
    return x.flatten(2)
