"""Makes curves of a run's journal: few enough points to be sent and drawn quickly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from schemas.records import StepRecord
from schemas.service import RunCurves, ServiceRun
from trainer.analysis.curves import thinned

MOST_POINTS = 400
COLUMNS = ("loss", "l0", "fvu", "rows_per_s", "stall", "dead")


def curves_of(
    run: ServiceRun, steps: Sequence[StepRecord], after_step: int = -1
) -> RunCurves:
    """Return the curves of a run, or what came to them after a step.

    Args:
        run: The run.
        steps: Its journal.
        after_step: The last step that is known already; below 0: none.
    """
    last_step = steps[-1].step if steps else -1
    # A run that went on from an older checkpoint: all of it is told again.
    whole = after_step < 0 or last_step < after_step
    new = steps if whole else [one for one in steps if one.step > after_step]
    shown = thinned(new, MOST_POINTS)
    columns = {name: [_finite(getattr(one, name)) for one in shown] for name in COLUMNS}
    return RunCurves(
        run=run.id,
        name=run.name,
        state=run.state,
        whole=whole,
        last_step=last_step,
        rows=[one.rows for one in shown],
        columns=columns,
    )


def _finite(value: float) -> float | None:
    """Return a value in six digits, which are more than is seen; None for NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
