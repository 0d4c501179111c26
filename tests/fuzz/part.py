"""Some cases of one seed, all on one kind of store: what a process of `make fuzz`, and
a test, works off.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.fuzz.mutations import Mutation, drawn
from tests.fuzz.stores import KINDS
from tests.fuzz.trial import Trial

PART = 500  # cases of one seed


def run(part: tuple[int, int, int]) -> tuple[int, list[tuple[Mutation, str]]]:
    """A part's number of cases, and the faults."""
    seed, number, cases = part
    rng = np.random.default_rng([seed, number])
    kind = list(KINDS)[number % len(KINDS)]
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(kind, Path(folder).resolve() / "fuzz")
        for _ in range(cases):
            mutation = drawn(kind, trial.objects, rng)
            fault = trial.run(mutation)
            if fault is not None:
                faults.append((mutation, fault))
    return cases, faults
