"""Eight hundred damaged and hostile stores, and all that ever found a fault. `make
test-slow` tries two thousand, `make fuzz` a hundred thousand.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.mutations import Mutation, drawn
from tests.fuzz.stores import KINDS
from tests.fuzz.trial import Trial

# For each kind of store; the few are the first of the many.
CASES = [200, pytest.param(500, marks=pytest.mark.slow)]
CORPUS = Path(__file__).parent / "corpus.jsonl"
FOUND = [
    Mutation(**json.loads(line))
    for line in CORPUS.read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module", params=list(KINDS))
def trial(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Trial:
    return Trial(
        request.param, tmp_path_factory.mktemp("fuzz").resolve() / request.param
    )


def test_what_found_a_fault_once_finds_none(trial: Trial) -> None:
    faults = [
        (trial.run(mutation), mutation.line())
        for mutation in FOUND
        if mutation.store == trial.kind
    ]
    assert faults
    assert [fault for fault in faults if fault[0]] == []


@pytest.mark.parametrize("cases", CASES)
def test_a_damaged_store_is_met_with_an_error_of_ours(trial: Trial, cases: int) -> None:
    rng = np.random.default_rng(1)
    mutations = [drawn(trial.kind, trial.objects, rng) for _ in range(cases)]
    faults = [(trial.run(mutation), mutation.line()) for mutation in mutations]
    assert [fault for fault in faults if fault[0]] == []


def test_the_harness_sees_what_it_is_for(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that cannot fail is none: with `verify` blind, a changed norm is a fault."""
    from actstore.inspect.verify import Verified

    monkeypatch.setattr(
        "tests.fuzz.trial.verify", lambda *_, **__: Verified(0, 0, [], [])
    )
    unit = Mutation(trial.kind, "units/00000.stats", "flip", [3])
    assert trial.run(unit) == "neither opening nor verify sees it"
