"""How fast a CPU multiplies matrices in half precision. It is measured: a processor's
name or flags do not tell.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

_SIZE, _ROUNDS = 512, 5  # 0.27 GFLOP: all rounds take 0.1 s or so
_SLOWER = 1.2  # times; less may be chance
HALF = ("bfloat16", "float16")


class Speed(NamedTuple):
    """FLOP/s of a matrix product. ratio: how many times as fast float32 is, the median
    of paired rounds.
    """

    half: float
    full: float
    ratio: float

    @property
    def slow(self) -> bool:
        return self.ratio > _SLOWER


def measured(dtype: str) -> Speed:
    """Products in half precision and in float32, in turn, with as many threads as torch
    has now.
    """
    import torch

    wide = torch.rand(_SIZE, _SIZE)
    half = wide.to(getattr(torch, dtype))

    def seconds(matrix: torch.Tensor) -> float:
        began = time.perf_counter()
        matrix @ matrix
        return time.perf_counter() - began

    seconds(half), seconds(wide)  # the first product of a kind prepares others
    pairs = [(seconds(half), seconds(wide)) for _ in range(_ROUNDS)]
    work = 2 * _SIZE**3
    of_half, of_full = (
        work / statistics.median(pair[i] for pair in pairs) for i in (0, 1)
    )
    return Speed(of_half, of_full, statistics.median(a / b for a, b in pairs))


def slow_here(dtype: str | None, device: str) -> str | None:
    """What to tell whoever wants to compute in a dtype on a device, where float32 is
    faster; None where it is not, and on a GPU.
    """
    if dtype not in HALF or not device.startswith("cpu"):
        return None
    speed = measured(dtype)
    return sentence(dtype, speed) if speed.slow else None


def sentence(dtype: str, speed: Speed) -> str:
    """Which is faster, with the figures."""
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
