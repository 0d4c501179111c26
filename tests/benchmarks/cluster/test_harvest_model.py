"""The simulated harvest: nothing is lost, and its simple cases have closed forms."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.harvesting.token_blocks import FIRST_PAUSE_S, LONGEST_PAUSE_S
from tests.benchmarks.cluster.bucket import Bucket
from tests.benchmarks.cluster.harvest_model import (
    Failures,
    Harvest,
    Limits,
    Load,
    Outcome,
    looks,
)
from tests.benchmarks.cluster.key_load import UnitRequests, unit_requests

NOTHING = UnitRequests(Counter(), Counter())
SOME = unit_requests(("a", "b"), 100e6)
STEADY = Failures()


def steady(seconds: float) -> float:
    return seconds


def run(
    n_units: int,
    gpus: int,
    *,
    unit_s: float = 2.0,
    upload_s: float = 0.5,
    failures: Failures = STEADY,
    limits: Limits | None = None,
    requests: UnitRequests = NOTHING,
    block_s: float = 0.0,
    spread: float = 0.0,
    seed: int = 0,
) -> Outcome:
    def drawn(rng: random.Random) -> float:
        return unit_s * rng.lognormvariate(0, spread) if spread else unit_s

    load = Load(n_units, drawn, upload_s, requests, block_s, 10.0)
    return Harvest(load, gpus, 4, failures, limits or Limits(), seed).run()


@settings(deadline=None, max_examples=40)
@given(
    n_units=st.integers(1, 120),
    gpus=st.integers(1, 20),
    mtbf=st.sampled_from([0.0, 200.0, 2000.0]),
    puts=st.sampled_from([0.0, 20.0, 500.0]),
    is_split=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_unit_is_done_exactly_once(
    n_units: int, gpus: int, mtbf: float, puts: float, is_split: bool, seed: int
) -> None:
    outcome = run(
        n_units,
        gpus,
        failures=Failures(mtbf, 30.0, 0.2, 1.5),
        limits=Limits(puts, 0.0, (50.0, 100.0), is_split=is_split),
        requests=SOME,
        spread=0.2,
        seed=seed,
    )
    assert outcome.commits == [1] * n_units


def test_without_failures_and_limits_the_makespan_is_the_closed_form() -> None:
    # Units go out in rounds of one for each GPU; the last one is written behind them.
    for n_units, gpus in ((100, 10), (101, 10), (7, 8)):
        rounds = math.ceil(n_units / gpus)
        outcome = run(n_units, gpus)
        assert outcome.makespan == pytest.approx(10 + rounds * 2.0 + 0.5)
        assert outcome.lost == outcome.refused == 0


def test_where_writing_is_slower_it_is_what_counts() -> None:
    outcome = run(100, 10, unit_s=1.0, upload_s=3.0)
    assert outcome.makespan == pytest.approx(10 + 1.0 + 10 * 3.0)


def test_token_blocks_that_come_slowly_hold_any_cluster_up() -> None:
    outcome = run(100, 50, block_s=5.0)
    # The last one is seen up to a longest pause later.
    least = 100 * 5.0 + 2.0 + 0.5
    assert least <= outcome.makespan <= least + LONGEST_PAUSE_S
    assert outcome.looks <= 50 * (outcome.makespan / LONGEST_PAUSE_S) + 100 * 8
    assert run(100, 50).looks == 0


@given(st.floats(0.001, 100))
def test_a_worker_that_waits_looks_again_after_longer_pauses(seconds: float) -> None:
    n_looks, waited = looks(seconds)
    pauses = [min(FIRST_PAUSE_S * 2**k, LONGEST_PAUSE_S) for k in range(n_looks - 1)]
    assert waited == pytest.approx(sum(pauses))
    assert waited >= seconds > waited - pauses[-1] - 1e-9


@settings(deadline=None, max_examples=30)
@given(n_units=st.integers(1, 200), gpus=st.integers(1, 30), more=st.integers(1, 30))
def test_more_gpus_are_never_slower_without_limits(
    n_units: int, gpus: int, more: int
) -> None:
    assert run(n_units, gpus + more).makespan <= run(n_units, gpus).makespan


def test_the_same_seed_gives_the_same_outcome() -> None:
    def one(seed: int) -> Outcome:
        return run(200, 12, failures=Failures(500.0, 20.0), spread=0.3, seed=seed)

    assert one(1) == one(1)
    assert one(1).makespan != one(2).makespan


def test_refusals_lower_the_rate_to_the_limit() -> None:
    # One partition: as many units a second as their requests allow, and the burst of
    # the first second; without limits it would be five times as fast.
    per_unit = sum(SOME.puts.values())
    rate = per_unit * 1.0  # a unit a second
    limits = Limits(puts=rate, is_split=False)
    limited = run(300, 10, requests=SOME, limits=limits)
    assert 0.5 < limited.makespan / (300 * per_unit / rate) < 1.6
    assert limited.refused > 0
    assert sum(limited.served.values()) <= rate * (limited.makespan + 1)
    free = run(300, 10, requests=SOME)
    assert free.makespan < limited.makespan / 3


def test_failures_lose_units_that_are_done_again() -> None:
    outcome = run(400, 16, failures=Failures(400.0, 60.0), seed=3)
    assert outcome.failures > 0
    assert outcome.lost > 0
    assert outcome.makespan > run(400, 16).makespan


# The bucket


def bucket(rate: float, *, is_split: bool = False, n: int = 4) -> Bucket:
    names = [f"folder{i}" for i in range(n)]
    return Bucket(names, rate, (10.0, 20.0), random.Random(0), is_split=is_split)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_bucket_serves_or_refuses_every_request_and_keeps_its_limit(
    data: st.DataObject,
) -> None:
    is_split = data.draw(st.booleans())
    asked = bucket(50.0, is_split=is_split)
    now = 0.0
    total = np.zeros(4, np.int64)
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.floats(0, 3))
        counts = data.draw(st.lists(st.integers(0, 60), min_size=4, max_size=4))
        wanted = np.array(counts)
        refused = asked.ask(wanted, now)
        assert refused is None or ((refused >= 0) & (refused <= wanted)).all()
        total += wanted
    assert (asked.served + asked.refused == total).all()
    assert (asked.served <= 50 * (now + 1)).all()
    # However often it was split, each partition keeps to its own limit.
    assert asked.served.sum() <= 50 * (now + 1) * asked.n_partitions


def test_an_overloaded_partition_is_split_in_time_until_folders_are_alone() -> None:
    asked = bucket(10.0)
    wanted = np.array([5, 5, 5, 5])
    for second in range(200):
        asked.ask(wanted, float(second))
    # 20 requests a second: two partitions serve them.
    assert asked.n_partitions == 2
    hot = bucket(10.0, n=1)
    for second in range(200):
        hot.ask(np.array([30]), float(second))
    assert hot.n_partitions == 1
