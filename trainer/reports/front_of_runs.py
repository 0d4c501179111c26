"""Finds the runs that no other run beats, and the one whose latents a page shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.runs.run_data import RunData


def on_the_front(runs: Sequence[RunData]) -> list[bool]:
    """Return for each run whether no other has both lower L0 and lower FVU.

    With L0 and FVU of (8, 0.4), (16, 0.2) and (16, 0.3) the third is beaten by the
    second. A run without an FVU is never on the front.
    """
    pooled = [run.evaluation.pooled for run in runs]
    points = [(one.l0, one.fvu) for one in pooled]
    return [_is_unbeaten(point, points) for point in points]


def shown_run(runs: Sequence[RunData]) -> RunData:
    """Return the run whose latents are shown: that in the middle of the front.

    The run of lowest FVU would be the densest one, whose latents say the least. Of
    several runs on the front it is the one whose L0 is nearest to the geometric mean of
    theirs.
    """
    alive = []
    logs = []
    for run, is_on_front in zip(runs, on_the_front(runs), strict=True):
        l0 = run.evaluation.pooled.l0
        if is_on_front and l0 > 0:
            alive.append(run)
            logs.append(math.log(l0))
    if not alive:
        return runs[0]
    middle = sum(logs) / len(logs)
    distances = [abs(log - middle) for log in logs]
    nearest = distances.index(min(distances))
    return alive[nearest]


def _is_unbeaten(
    point: tuple[float, float], points: Sequence[tuple[float, float]]
) -> bool:
    """Return whether a point (L0, FVU) has an FVU, and none of all points beats it."""
    fvu = point[1]
    if math.isnan(fvu):
        return False
    return not any(_beats(other, point) for other in points)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether a point (L0, FVU) is at most another in both, and not equal."""
    return one[0] <= other[0] and one[1] <= other[1] and one != other
