"""Many clients at once, while a run is trained, are all answered (in short)."""

from __future__ import annotations

import pytest

from tests.benchmarks.service_load import measured


@pytest.mark.slow
def test_no_answer_is_an_error() -> None:
    records = list(measured(seconds=8, n_clients=100, n_runs=200))
    (errors,) = [record for record in records if record.case.startswith("errors")]
    assert errors.value == 0
    (events,) = [record for record in records if record.case.startswith("fewest")]
    assert "10 followers" in events.case
    assert events.value > 0
    routes = {record.case for record in records if record.case.startswith("p99")}
    assert len(routes) == 4
