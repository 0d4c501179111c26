"""How long training is expected to take, from runs that this service has trained.

Nothing is guessed: where nothing like a run has been trained here, nothing is said.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from schemas.train import TrainSpec
from trainer.queue.queue_records import NewRun, QueuedRun

# What is like a run: kind, dictionary, batch and precision, on rows of one store.
Likeness = tuple[str, str, str, int, str]


def expected_seconds(
    runs: Sequence[NewRun], before: Iterable[QueuedRun], n_slots: int
) -> float | None:
    """Return the seconds that runs take; None where some are like none before.

    The steps of runs that share a pass come one after the other, so that each costs
    what it does alone.

    Args:
        runs: The runs.
        before: Runs that have completed.
        n_slots: How many passes are trained at the same time.
    """
    rates = _rates([run for run in before if run.state == "completed"])
    seconds = 0.0
    for run in runs:
        rate = rates.get(_likeness(run.spec, run.store_url))
        if rate is None:
            return None
        seconds += run.rows / rate
    return seconds / max(1, min(n_slots, len(runs)))


def _rates(runs: Sequence[QueuedRun]) -> dict[Likeness, float]:
    """Return the rows per second of what was trained, as if each had been alone."""
    # Runs of one pass begin at the same moment.
    sharing = Counter((run.started, run.store_url) for run in runs)
    found: dict[Likeness, list[float]] = {}
    for run in runs:
        if run.progress is None or run.progress.rows_per_s <= 0:
            continue
        n_sharing = sharing[run.started, run.store_url]
        key = _likeness(run.spec, run.store_url)
        found.setdefault(key, []).append(run.progress.rows_per_s * n_sharing)
    return {key: statistics.median(rates) for key, rates in found.items()}


def _likeness(spec: TrainSpec, store_url: str) -> Likeness:
    sae = spec.sae.model_dump_json(exclude={"k", "target_l0", "l1", "l0", "alpha"})
    return sae, store_url, spec.stream.mode, spec.stream.batch, spec.precision
