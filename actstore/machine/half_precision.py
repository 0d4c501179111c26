"""Measures how fast a CPU multiplies matrices in half precision.

A processor's name or flags do not tell that.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

# Rows and columns of the matrices: a product takes 0.27 GFLOP.
_SIZE = 512
# Rounds of measuring, which take about 0.1 s together.
_ROUNDS = 5
# The factor from which half precision counts as slower: less may be chance.
_SLOWER = 1.2
HALF = ("bfloat16", "float16")


class Speed(NamedTuple):
    """The speed of matrix products.

    Attributes:
        half: FLOP/s in half precision.
        full: FLOP/s in float32.
        ratio: How many times as fast float32 is, the median of paired rounds.
    """

    half: float
    full: float
    ratio: float

    @property
    def slow(self) -> bool:
        """True if half precision is slower, by more than chance."""
        return self.ratio > _SLOWER


def measured(dtype: str) -> Speed:
    """Measure products in half precision and in float32, in turn.

    They run with as many threads as torch has now.
    """
    import torch

    full = torch.rand(_SIZE, _SIZE)
    half = full.to(getattr(torch, dtype))

    def seconds(matrix: torch.Tensor) -> float:
        began = time.perf_counter()
        matrix @ matrix
        return time.perf_counter() - began

    # The first product of a dtype prepares others: it is not counted.
    seconds(half)
    seconds(full)
    half_seconds = []
    full_seconds = []
    for _ in range(_ROUNDS):
        half_seconds.append(seconds(half))
        full_seconds.append(seconds(full))
    flop = 2 * _SIZE**3
    # Paired, so that a machine that is busy for a while slows both alike.
    ratios = [h / f for h, f in zip(half_seconds, full_seconds, strict=True)]
    return Speed(
        half=flop / statistics.median(half_seconds),
        full=flop / statistics.median(full_seconds),
        ratio=statistics.median(ratios),
    )


def slow_here(dtype: str | None, device: str) -> str | None:
    """Return a warning where a dtype is slower than float32 on a device; else None.

    None on a GPU, too. The warning is for whoever wants to compute in that dtype.
    """
    if dtype not in HALF or not device.startswith("cpu"):
        return None
    speed = measured(dtype)
    return sentence(dtype, speed) if speed.slow else None


def sentence(dtype: str, speed: Speed) -> str:
    """Return which of a dtype and float32 is faster, with the figures."""
    figures = f"{speed.half / 1e9:,.0f} against {speed.full / 1e9:,.0f} GFLOP/s"
    if not speed.slow:
        return (
            f"{dtype} is {1 / speed.ratio:.1f} times as fast as float32 on this"
            f" processor ({figures})"
        )
    return (
        f"{dtype} is {speed.ratio:.1f} times slower than float32 on this processor,"
        f" which has no fast {dtype} (measured: {figures}); float32 is the better"
        " choice here"
    )
