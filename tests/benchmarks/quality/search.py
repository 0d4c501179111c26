"""The penalty that gives an L0, and what a library reaches at that L0: pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# of the logarithm of L0: near enough to go on from with another point's slope
CLOSE = 0.03
EXACT = 0.003  # near enough without
FARTHEST = 8.0  # factor from one try to the next


class Point(NamedTuple):
    """One SAE that was trained with a penalty."""

    penalty: float
    l0: float
    fvu: float


def next_penalty(points: Sequence[Point], l0: float) -> float | None:
    """The penalty to try next, or None where one of the points is near enough.

    L0 is taken for a power of the penalty: between the nearest points on either side,
    or on from the nearest two.
    """
    nearest = min(points, key=lambda point: abs(_distance(point, l0)))
    if abs(_distance(nearest, l0)) < (CLOSE if len(points) > 1 else EXACT):
        return None
    ordered = sorted(points, key=lambda point: point.penalty)
    low = [point for point in ordered if point.l0 > l0]  # too weak
    high = [point for point in ordered if point.l0 < l0]
    if low and high:
        one, other = low[-1], high[0]
        share = _distance(one, l0) / (_distance(one, l0) - _distance(other, l0))
        if one.penalty == other.penalty:
            return None
        return one.penalty * (other.penalty / one.penalty) ** min(0.9, max(0.1, share))
    power = 1.0
    if len(points) > 1:
        second = min(
            (p for p in points if p is not nearest),
            key=lambda point: abs(_distance(point, l0)),
        )
        slope = _distance(nearest, l0) - _distance(second, l0)
        moved = math.log(nearest.penalty / second.penalty)
        power = -slope / moved if slope * moved < 0 else 0.25
    factor = math.exp(_distance(nearest, l0) / max(power, 0.05))
    return nearest.penalty * min(FARTHEST, max(1 / FARTHEST, factor))


def at_l0(points: Sequence[Point], l0: float) -> float | None:
    """FVU at an L0: log FVU over log L0, between the nearest points on either side, or
    on from the nearest two where one of them is near; None where it would be a guess.
    """
    ordered = sorted(points, key=lambda point: abs(_distance(point, l0)))
    if len(ordered) == 1:
        return ordered[0].fvu if abs(_distance(ordered[0], l0)) < EXACT else None
    if not ordered or (
        _around(ordered, l0) is None and abs(_distance(ordered[0], l0)) >= 3 * CLOSE
    ):
        return None
    return adjusted(ordered[0], ordered, l0)


def adjusted(point: Point, others: Sequence[Point], l0: float) -> float:
    """The FVU that a point would have at an L0, with the slope of the nearest two
    others; as it is without these, and where it is there already: between seeds, whose
    L0 is nearly the same, a slope would be noise.
    """
    if abs(_distance(point, l0)) < EXACT:
        return point.fvu
    usable = (other for other in others if other.l0 > 0)
    ordered = sorted(usable, key=lambda other: abs(_distance(other, l0)))
    one, *rest = _around(ordered, l0) or ordered[:2] or [point]
    if not rest or abs(math.log(one.l0 / rest[0].l0)) < EXACT:
        return point.fvu
    slope = math.log(one.fvu / rest[0].fvu) / math.log(one.l0 / rest[0].l0)
    return point.fvu * math.exp(-slope * _distance(point, l0))


def _around(ordered: Sequence[Point], l0: float) -> tuple[Point, Point] | None:
    """Of points sorted by their distance, the nearest at or above an L0 and the nearest
    below it, if there are both.
    """
    above = next((point for point in ordered if point.l0 >= l0), None)
    below = next((point for point in ordered if point.l0 < l0), None)
    return (above, below) if above is not None and below is not None else None


def _distance(point: Point, l0: float) -> float:
    return math.log(max(point.l0, 1e-3) / l0)
