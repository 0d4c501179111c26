"""Chooses the sequences whose rows are computed again: a few runs, from many units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from actstore.errors import CorruptError, ObjectError
from actstore.store.store import Store

_RUNS = 8  # runs that a sample is spread over, where the store has so many


class SequenceRun(NamedTuple):
    """Sequences of one unit that follow each other, and are run in one forward.

    Attributes:
        unit: Number of the unit.
        start: The first of them, counted from 0 in the unit.
        stop: Where they end.
    """

    unit: int
    start: int
    stop: int


class Sample(NamedTuple):
    """The sequences that are computed again.

    Attributes:
        runs: Runs of them, in order.
        problems: A line for each unit whose record cannot be read.
    """

    runs: list[SequenceRun]
    problems: list[str]


def sampled_runs(store: Store, n_rows: int, seed: int) -> Sample:
    """Return runs of sequences with about `n_rows` tokens together.

    No run is longer than a forward of the harvest was. Each unit gives one before any
    gives a second. With more rows than there are, every sequence is in one run. A unit
    without sequences, which a part of a store may have, gives none.
    """
    context = store.layout.context
    rng = np.random.default_rng(seed)
    wanted = -(-n_rows // (_RUNS * context))
    longest = min(store.manifest.spec.batch, store.layout.unit_sequences)
    length = max(1, min(wanted, longest))
    n_runs = -(-n_rows // (length * context))
    # By unit, the places where a run can begin, in an order of chance.
    places = []
    problems = []
    for unit in rng.permutation(store.manifest.n_units).tolist():
        try:
            n_sequences = store.record(unit).n_sequences
        except (CorruptError, ObjectError) as error:
            problems.append(f"corrupt  {error}")
            continue
        if not n_sequences:
            continue
        starts = rng.permutation(np.arange(0, n_sequences, length)).tolist()
        places.append((unit, n_sequences, starts))
        if len(places) >= n_runs:
            break
    runs: list[SequenceRun] = []
    while places and len(runs) < n_runs:
        for unit, n_sequences, starts in places[: n_runs - len(runs)]:
            start = starts.pop()
            runs.append(SequenceRun(unit, start, min(start + length, n_sequences)))
        places = [place for place in places if place[2]]
    return Sample(sorted(runs), problems)
