"""Means over seeds with their intervals, and straight lines with their p-values.

Student's t distribution is computed in closed form, which there is for whole numbers of
degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4); its quantiles by
bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.errors import TrainerError

CONFIDENCE = 0.95
Numbers = Sequence[float] | NDArray[np.floating]


class Interval(NamedTuple):
    """A mean over seeds, and where the true mean lies with 95 % confidence.

    Attributes:
        mean: The mean of the figures that are numbers; NaN where there is none.
        low: The lower end; NaN where there are fewer than two figures.
        high: The upper end.
        n: How many figures there are.
    """

    mean: float
    low: float
    high: float
    n: int


class Means(NamedTuple):
    """Means over seeds at several places, ascending, and their intervals.

    Attributes:
        at: The places, [n].
        mean: The mean at each, [n].
        low: Lower ends, [n]; NaN where there are fewer than two figures.
        high: Upper ends, [n].
    """

    at: NDArray[Any]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Line(NamedTuple):
    """A straight line fitted by least squares: y = intercept + slope x.

    A figure that the points do not determine is NaN: all of them where fewer than two
    places differ, those of the error where there are only two points.

    Attributes:
        slope: The slope, in units of y for one of x.
        intercept: Where it crosses x = 0.
        r_squared: The share of y's variance that it explains.
        error: Standard error of the slope.
        p: Two-sided p-value of the slope: how likely one as steep is where there is
            none.
        n: How many points it was fitted to.
    """

    slope: float
    intercept: float
    r_squared: float
    error: float
    p: float
    n: int


def within(t: float, degrees: int) -> float:
    """Return the probability that Student's t lies between -t and t.

    Args:
        t: The limit, at least 0.
        degrees: Degrees of freedom, at least 1.
    """
    if math.isinf(t):
        return 1.0
    angle = math.atan(t / math.sqrt(degrees))
    sine = math.sin(angle)
    cosine = math.cos(angle)
    is_odd = degrees % 2 == 1
    # The sum of 26.7.3 begins with the cosine, that of 26.7.4 with 1.
    term = cosine if is_odd else 1.0
    total = 0.0
    first = 1 if is_odd else 0
    for power in range(first, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine * cosine
    if is_odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


def two_sided_p(t: float, degrees: int) -> float:
    """Return how likely a t at least as far from 0 is by chance.

    Below 1e-15 it is 0, since it is the difference from 1.
    """
    return max(0.0, 1.0 - within(abs(t), degrees))


@cache
def t_quantile(confidence: float, degrees: int) -> float:
    """Return the t that lies between -t and t with a probability: 12.7 for 0.95 and 1.

    Args:
        confidence: The probability, above 0 and below 1.
        degrees: Degrees of freedom.

    Raises:
        TrainerError: The probability or the degrees are none.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise TrainerError(
            "wanted a probability between 0 and 1 and at least 1 degree of freedom,"
            f" got {confidence:g} and {degrees}"
        )
    low = 0.0
    high = 1.0
    while within(high, degrees) < confidence:
        high *= 2
    # Until there is no number between the two.
    while low < (middle := (low + high) / 2) < high:
        if within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def mean_interval(figures: Numbers, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of figures, one per seed, with its interval.

    It is the mean plus and minus t times the standard deviation over the root of n. For
    1, 2 and 3 that is 2 and 4.303 / sqrt(3) = 2.48 to either side. Figures that are NaN
    are left out.
    """
    every = np.asarray(figures, dtype=np.float64)
    known = every[~np.isnan(every)]
    n = len(known)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    error = float(known.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(confidence, n - 1) * error
    return Interval(mean, mean - half, mean + half, n)


def shown_interval(interval: Interval) -> str:
    """Return an interval as text: `0.12 (95 %: 0.11 to 0.13, 3 seeds)`."""
    if interval.n == 0:
        return "not known"
    mean = f"{interval.mean:.4g}"
    if interval.n == 1:
        return f"{mean} (1 seed)"
    ends = f"95 %: {interval.low:.4g} to {interval.high:.4g}"
    return f"{mean} ({ends}, {interval.n} seeds)"


def means_at(places: ArrayLike, figures: Numbers) -> Means:
    """Return the mean of the figures at each distinct place, with its interval.

    Args:
        places: Where each figure is, [n]: a step, a layer, a bin.
        figures: The figures, [n].
    """
    every = np.asarray(places)
    values = np.asarray(figures, dtype=np.float64)
    at = np.unique(every)
    found = [mean_interval(values[every == place]) for place in at]
    return Means(
        at,
        np.array([interval.mean for interval in found]),
        np.array([interval.low for interval in found]),
        np.array([interval.high for interval in found]),
    )


def fit_line(x: Numbers, y: Numbers) -> Line:
    """Return the line of least squares through points; those with a NaN are left out.

    Args:
        x: Places, [n].
        y: Values, [n].
    """
    places = np.asarray(x, dtype=np.float64)
    values = np.asarray(y, dtype=np.float64)
    is_known = np.isfinite(places) & np.isfinite(values)
    places = places[is_known]
    values = values[is_known]
    n = len(places)
    nothing = Line(math.nan, math.nan, math.nan, math.nan, math.nan, n)
    if n < 2:
        return nothing
    from_mean = places - places.mean()
    spread_of_x = float(from_mean @ from_mean)
    if spread_of_x <= 0:
        return nothing
    slope = float(from_mean @ (values - values.mean())) / spread_of_x
    intercept = float(values.mean() - slope * places.mean())
    residuals = values - (intercept + slope * places)
    unexplained = float(residuals @ residuals)
    total = float(np.square(values - values.mean()).sum())
    r_squared = 1 - unexplained / total if total > 0 else math.nan
    if n == 2:
        return Line(slope, intercept, r_squared, math.nan, math.nan, n)
    error = math.sqrt(unexplained / (n - 2) / spread_of_x)
    p = _p_of_slope(slope, error, n - 2)
    return Line(slope, intercept, r_squared, error, p, n)


def correlation(x: Numbers, y: Numbers) -> float:
    """Return Pearson's correlation; NaN where one of both does not vary."""
    line = fit_line(x, y)
    if math.isnan(line.r_squared):
        return math.nan
    # Rounding may leave an R^2 of -1e-17.
    return math.copysign(math.sqrt(max(0.0, line.r_squared)), line.slope)


def _p_of_slope(slope: float, error: float, degrees: int) -> float:
    """Return the p-value of a slope; a line through all points leaves no chance."""
    if error == 0:
        return math.nan if slope == 0 else 0.0
    return two_sided_p(slope / error, degrees)
