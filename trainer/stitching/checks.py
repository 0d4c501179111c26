"""Checks the arguments of this room's functions."""

from __future__ import annotations

import numbers
from typing import Any

from actstore.arguments import Refused

THRESHOLD = 0.7
"""Cosine above which latents count as similar; 0.707 is more aligned than orthogonal"""


def cosine(value: Any) -> float:
    """Take a cosine between 0 and 1, both left out."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1:
        raise Refused("a cosine between 0 and 1, such as 0.7")
    return float(value)
