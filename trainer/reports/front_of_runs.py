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
    points = [(run.evaluation.pooled.l0, run.evaluation.pooled.fvu) for run in runs]
    return [
        not math.isnan(point[1])
        and not any(_beats(other, point) for other in points if other is not point)
        for point in points
    ]


def shown_run(runs: Sequence[RunData]) -> RunData:
    """Return the run whose latents are shown: that in the middle of the front.

    The run of lowest FVU would be the densest one, whose latents say the least. Of
    several runs on the front it is the one whose L0 is nearest to the geometric mean of
    theirs.
    """
    front = [run for run, is_on in zip(runs, on_the_front(runs), strict=True) if is_on]
    alive = [run for run in front if run.evaluation.pooled.l0 > 0]
    if not alive:
        return runs[0]
    logs = [math.log(run.evaluation.pooled.l0) for run in alive]
    middle = sum(logs) / len(logs)
    distances = [abs(log - middle) for log in logs]
    return alive[distances.index(min(distances))]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether a point (L0, FVU) is at most another in both, and not equal."""
    return one[0] <= other[0] and one[1] <= other[1] and one != other
