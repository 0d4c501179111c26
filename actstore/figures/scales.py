"""Turns values into places on an axis, and finds round values for its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import Axis, Numbers

# A logarithmic axis whose ends differ by less has plain steps.
NARROW = 20
LARGEST = 1e300
SMALLEST = 1e-290
MARGIN = 0.04  # share of an axis that is left free at either end


@dataclass(frozen=True, slots=True)
class Scale:
    """Places of an axis' values.

    Attributes:
        low: The value at its beginning.
        high: The value at its end.
        begin: The place of `low`, in pixels.
        end: The place of `high`.
        log: Places go by the logarithm.
    """

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def places(self, values: Numbers) -> NDArray[np.float64]:
        """Return the places of values [n] in pixels, NaN where there is none."""
        array = np.asarray(values, dtype=np.float64)
        low = self.low
        high = self.high
        if self.log:
            positive = np.where(array > 0, array, np.nan)
            array = np.log10(positive)
            low = math.log10(low)
            high = math.log10(high)
        share = (array - low) / (high - low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, about: int) -> list[float]:
        """Return about so many round values within the axis."""
        if self.log:
            return _log_ticks(self.low, self.high, about)
        return _linear_ticks(self.low, self.high, about)


def scale_of(axis: Axis, values: Iterable[Numbers], begin: float, end: float) -> Scale:
    """Return the scale of an axis.

    Args:
        axis: The axis.
        values: All that is drawn along it.
        begin: Where it begins, in pixels.
        end: Where it ends.
    """
    if axis.categories:
        return Scale(-0.6, len(axis.categories) - 0.4, begin, end)
    low, high = axis.limits or _ends(axis, values)
    return Scale(low, high, begin, end, axis.log)


def _ends(axis: Axis, values: Iterable[Numbers]) -> tuple[float, float]:
    """Return the ends of an axis that shows all values, with a margin."""
    arrays = [np.asarray(some, dtype=np.float64).ravel() for some in values]
    every = np.concatenate([np.empty(0), *arrays])
    # Beyond these the length of an axis is no number.
    every = np.clip(every[np.isfinite(every)], -LARGEST, LARGEST)
    if axis.log:
        return _log_ends(every[every > 0])
    if not len(every):
        return 0.0, 1.0
    low = float(every.min())
    high = float(every.max())
    if axis.zero:
        low = min(low, 0.0)
        high = max(high, 0.0)
    if high - low < SMALLEST:
        room = abs(low) / 2 if abs(low) > SMALLEST else 0.5
        # What is 0 everywhere, such as dead latents, is drawn on the ground.
        return (0.0, 2 * room) if axis.zero and low == 0 else (low - room, high + room)
    room = MARGIN * (high - low)
    # An axis that begins at 0 begins there exactly.
    begin = low if axis.zero and low == 0 else low - room
    end = high if axis.zero and high == 0 else high + room
    return begin, end


def _log_ends(positive: NDArray[np.float64]) -> tuple[float, float]:
    if not len(positive):
        return 0.1, 1.0
    positive = np.clip(positive, SMALLEST, LARGEST)
    low = math.log10(positive.min())
    high = math.log10(positive.max())
    room = MARGIN * (high - low) or 0.15
    return 10 ** (low - room), 10 ** (high + room)


def _linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten: 0, 0.2, 0.4, ..."""
    rough = (high - low) / max(about, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    """Return powers of ten, with 2 and 5 times them where there is room."""
    if high / low < NARROW:
        return _linear_ticks(low, high, about)
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first) / max(about, 1)))
    if every > 1 or last - first > about / 2:
        return [10.0**power for power in range(first, last + 1, every)]
    ticks = [
        10.0**power * factor
        for power in range(first - 1, last + 1)
        for factor in (1, 2, 5)
    ]
    return [tick for tick in ticks if low <= tick <= high]


def tick_text(value: float) -> str:
    """Return a value as an axis shows it: `0.2`, `1,500`, `20k`, `3M`, `1e-7`."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= size < 1e13:
            unit = {"G": 1e9, "M": 1e6, "k": 1e3}[letter]
            return f"{value / unit:.6g}{letter}"
    if size >= 1e13 or size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.6g}".replace("-", "−")
